//! The keeper's second task: a sandbox that runs has a monitor.
//!
//! ```text
//!   who owns it? ──lives──► wait for its end ──┐
//!        ▲   │ nobody                          │
//!        │   ▼                                 │
//!        │  start one, wait for its end        │
//!        └──────────── back-off ◄──────────────┘
//! ```
//!
//! The keeper knows nothing else of the sandbox: who its monitor is stands in the state, and a monitor
//! that finds the sandbox owned ends at once. A monitor that has ended the sandbox ends the keeper too.

use std::path::PathBuf;
use std::time::Duration;

use coracle_uvm::process::Process;
use tokio::time::{Instant, sleep};

use crate::ledger;
use crate::monitor;
use crate::root::Root;

/// The first pause after a monitor that died soon, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// A monitor that lived so long did not die of what it found.
const LONG: Duration = Duration::from_secs(10);

/// Whom to supervise.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// Where the sandbox is.
    pub root: Root,
    /// Its name.
    pub sandbox: String,
    /// The program that is its monitor.
    pub program: PathBuf,
}

impl Supervisor {
    /// Sees to it that the sandbox has a monitor, until nothing is written down of it or it has ended.
    pub async fn run(self) {
        let mut pause = PAUSES.0;
        loop {
            let (root, name) = (self.root.clone(), self.sandbox.clone());
            let read = tokio::task::spawn_blocking(move || ledger::read(&root, &name)).await;
            let record = match read {
                Ok(Ok(Some(record))) => record,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot read whose the sandbox is");
                    sleep(PAUSES.1).await;
                    continue;
                }
                Err(_) => return,
            };
            if record.is_at_rest() {
                return;
            }
            let began = Instant::now();
            let owner = record.monitor.and_then(|owner| Process::find(&owner).ok().flatten());
            match owner {
                Some(owner) => {
                    owner.ended_unreaped().await;
                    pause = PAUSES.0;
                    continue;
                }
                None => self.start_one().await,
            }
            if began.elapsed() > LONG {
                pause = PAUSES.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Starts a monitor and waits for its end.
    async fn start_one(&self) {
        tracing::info!(sandbox = self.sandbox, "its monitor is gone: starting one");
        let mut child = match monitor::spawn(&self.program, &self.root, &self.sandbox) {
            Ok(child) => child,
            Err(error) => return tracing::error!(%error, "cannot start a monitor"),
        };
        // Not on a thread that waits: whoever stops the keeper would have to wait for that.
        match Process::open(child.id()) {
            Ok(process) => process.ended_unreaped().await,
            Err(error) => tracing::warn!(%error, "cannot watch a monitor"),
        }
        let ended = child.try_wait();
        tracing::info!(?ended, "a monitor ended");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ledger::Ledger;
    use crate::record::SandboxRecord;

    #[test]
    fn a_keeper_that_is_to_end_does_not_wait_for_the_monitor_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let mut record = SandboxRecord::creating("x", crate::record::tests::fixture().order);
        record.monitor = None;
        Ledger::begin(&root, record).unwrap();
        let (program, told) = (folder.path().join("monitor"), folder.path().join("pid"));
        let script = format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", told.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let supervisor = Supervisor { root, sandbox: "x".to_owned(), program };
        let pid = runtime.block_on(async {
            let started = async {
                loop {
                    let said = fs::read_to_string(&told).unwrap_or_default();
                    match said.trim().parse() {
                        Ok(pid) => break pid,
                        Err(_) => sleep(Duration::from_millis(5)).await,
                    }
                }
            };
            tokio::select! {
                () = supervisor.run() => panic!("there is a sandbox to supervise"),
                pid = started => pid,
            }
        });
        let (tell, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            tell.send(()).unwrap();
        });
        let is_over = over.recv_timeout(Duration::from_secs(20)).is_ok();
        let monitor = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(monitor, rustix::process::Signal::KILL).unwrap();
        rustix::process::waitpid(Some(monitor), rustix::process::WaitOptions::empty()).unwrap();
        assert!(is_over, "it waits");
    }
}
