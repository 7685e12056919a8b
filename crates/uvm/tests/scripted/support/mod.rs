//! A machine monitor that follows a script, and what a test needs around it.
//!
//! The machine is a task, but its channel, its keeper, its bridge and its guest server are the
//! real ones: what is scripted is only when the guest speaks, and when the machine dies. So each
//! order of events of a VM's life can be had at will, in milliseconds.

mod guest;
mod machine;
mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_uvm::options::OptionsLcow;
use coracle_uvm::{State, UtilityVm, UvmError};
use coracle_vmm::Accel;

pub use guest::{Bridge, Guest};
pub use machine::ScriptedVmm;

/// One test's folders and options.
pub struct Rig {
    folder: tempfile::TempDir,
    pub vmm: Arc<ScriptedVmm>,
}

impl Rig {
    pub fn new(guest: Guest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kernel", "initrd.img"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        Self { folder, vmm: Arc::new(ScriptedVmm::new(guest)) }
    }

    /// The options of a VM that needs nothing of the host.
    pub fn options(&self) -> OptionsLcow {
        let mut opts = OptionsLcow::with_boot_files("", "test", self.folder.path());
        opts.host.run_dir = Some(self.run_dir());
        opts.host.accelerator = Accel::Tcg;
        opts.host.start_timeout = Duration::from_secs(30);
        opts
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub async fn create(&self) -> UtilityVm {
        self.create_with(|_| {}).await.unwrap()
    }

    pub async fn create_with(
        &self,
        change: impl FnOnce(&mut OptionsLcow),
    ) -> Result<UtilityVm, UvmError> {
        let mut opts = self.options();
        change(&mut opts);
        UtilityVm::create_lcow_with(self.vmm.clone(), opts).await
    }

    /// A VM that runs.
    pub async fn started(&self) -> UtilityVm {
        let vm = self.create().await;
        vm.start().await.unwrap();
        assert_eq!(vm.state(), State::Running);
        vm
    }

    /// Nothing of any VM of this test is left: no machine, no task of its guest, no folder.
    pub async fn assert_clean(&self) {
        within("the machine's end", async {
            while self.vmm.is_alive() || self.run_dir().exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// Waits for something that must happen, far longer than it can take.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not happen within 30 s"),
    }
}

/// The error and its causes, as the seed prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// The files in a folder, by name.
pub fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
