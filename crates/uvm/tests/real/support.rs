//! What a test on a real VM needs, and the look at the host after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_bridge::message::ProcessParameters;
use coracle_uvm::options::{ColdDisk, ColdMount, OptionsLcow};
use coracle_uvm::{UtilityVm, UvmError};
use tokio::io::AsyncReadExt;

/// A folder for one test's VM.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn run_dir(&self) -> PathBuf {
        self.0.path().join("run")
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A small VM with the guest files of this machine.
    pub fn options(&self) -> OptionsLcow {
        let mut opts = OptionsLcow::new_default("", "coracle-uvm-test");
        assert!(
            opts.boot_files_path.join("initrd.img").exists(),
            "there are no guest files in {}: run `make setup`",
            opts.boot_files_path.display()
        );
        opts.options.memory_size_in_mb = 256;
        opts.options.processor_count = 1;
        opts.host.run_dir = Some(self.run_dir());
        opts
    }

    pub async fn started(&self, change: impl FnOnce(&mut OptionsLcow)) -> Started {
        let mut opts = self.options();
        change(&mut opts);
        let vm = UtilityVm::create_lcow(opts).await.unwrap();
        if let Err(error) = vm.start().await {
            panic!("{}\n{}", chain(&error), vm.console_tail().await);
        }
        Started { pid: vm.vm_identity().pid, run_dir: self.run_dir(), vm }
    }
}

/// A VM that runs.
pub struct Started {
    pub vm: UtilityVm,
    pub pid: u32,
    run_dir: PathBuf,
}

impl Started {
    /// Closes the VM and looks that the host has nothing of it left.
    pub async fn close(self) {
        let cgroup = self.vm.vm_identity().cgroup.clone();
        self.vm.close().await.unwrap();
        assert_gone(self.pid);
        assert!(!self.run_dir.exists(), "the run folder is left");
        if let Some(cgroup) = cgroup {
            let left = cgroup_folders(&cgroup);
            assert!(left.is_empty(), "control groups are left: {left:?}");
        }
    }
}

/// The folders of a control group, below every hierarchy there is.
pub fn cgroup_folders(group: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let group = group.strip_prefix("/").unwrap_or(group);
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let folder = words.nth(1)?;
            words.next()?.starts_with("cgroup").then(|| Path::new(folder).join(group))
        })
        .chain(std::iter::once(Path::new("/").join(group)))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// The process has ended and was waited for.
pub fn assert_gone(pid: u32) {
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
}

/// The built-in container root as a disk, mounted at `/run/layer`.
pub fn root_disk(opts: &OptionsLcow) -> ColdDisk {
    let path = opts.boot_files_path.join("rootfs.erofs");
    let file = std::fs::File::open(&path).unwrap();
    let mount = ColdMount { path: "/run/layer".to_owned(), filesystem: "erofs".to_owned() };
    ColdDisk {
        serial: "root".to_owned(),
        file: Arc::new(file.into()),
        read_only: true,
        mount: Some(mount),
    }
}

/// The processes of a program that have something below `folder` on their command line, the oldest
/// first.
pub fn servers(program: &str, folder: &Path) -> Vec<i32> {
    let folder = folder.to_str().unwrap();
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next().is_some_and(|word| word.ends_with(program)) && line.contains(folder)
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// A small ext4 image with one file, `name`, that says the image's name.
pub fn image(folder: &Path, name: &str) -> String {
    let (path, tree) = (folder.join(name), folder.join(format!("{name}.tree")));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("name"), name).unwrap();
    std::fs::write(tree.join(format!("only-{name}")), name).unwrap();
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    // Blocks as large as pages: what is mapped into memory needs them so.
    let made = std::process::Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
        .args([&tree, &path])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path.to_str().unwrap().to_owned()
}

/// Waits for something that must happen, far longer than it can take.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(120), work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not happen within 120 s"),
    }
}

/// The error and its causes.
pub fn chain(error: &UvmError) -> String {
    let (mut text, mut next) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Runs a shell command in the VM itself, with the programs of [`root_disk`], and returns what it prints; it must succeed.
pub async fn sh(vm: &UtilityVm, command: &str) -> String {
    sh_with("/run/layer/bin/busybox", vm, command).await
}

/// The same, with a busybox that is elsewhere.
pub async fn sh_with(busybox: &str, vm: &UtilityVm, command: &str) -> String {
    let parameters = ProcessParameters {
        command_args: [busybox, "sh", "-c", command].map(str::to_owned).to_vec(),
        environment: [(
            "PATH".to_owned(),
            "/run/layer/bin:/run/layer/sbin:/run/layer/usr/bin:/bin:/usr/bin".to_owned(),
        )]
        .into(),
        create_std_out_pipe: true,
        create_std_err_pipe: true,
        ..ProcessParameters::default()
    };
    let process = within("the command's start", vm.create_process(&parameters)).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut out, mut err) = (String::new(), String::new());
    let both = async {
        let (mut stdout, mut stderr) = (stdio.stdout.take().unwrap(), stdio.stderr.take().unwrap());
        tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err))
    };
    let (read_out, read_err) = within("the command's output", both).await;
    read_out.unwrap();
    read_err.unwrap();
    let code = within("the command's end", process.wait()).await.unwrap();
    assert_eq!(code, 0, "{command}: {err}");
    out
}

/// A program of the examples, which are built with the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: run all targets of the crate", path.display());
    path
}
