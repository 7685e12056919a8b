//! The keeper of the VM's channel, as a task or as a process.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use coracle_bridge::channel::ChannelDir;
use coracle_bridge::channel::keeper::{self, Keeper, KeeperError};
use coracle_vmm::process::{PART, Process, ProcessIdentity};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::options::{ChannelBacking, KeeperPlacement};

/// How long a keeper may take until it serves the folder.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// The keeper did not come up.
#[derive(Debug, thiserror::Error)]
pub enum KeeperStartError {
    /// It said why.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Its command cannot be run.
    #[error("run {command:?}")]
    Spawn {
        /// The command.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("the keeper ended before it was ready")]
    Ended,
}

/// A keeper that serves the VM's folder.
#[derive(Debug)]
pub(super) enum RunningKeeper {
    Task {
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    },
    Process(Child, ProcessIdentity),
    /// Started by another process, which is dead.
    Adopted(Process),
}

impl RunningKeeper {
    /// Starts it and waits until it serves; None where somebody else stands behind the folder.
    pub(super) async fn start(
        placement: &KeeperPlacement,
        backing: &ChannelBacking,
        guest_boots: bool,
        dir: &ChannelDir,
    ) -> Result<Option<Self>, KeeperStartError> {
        match placement {
            KeeperPlacement::Task => Self::task(backing, guest_boots, dir).await.map(Some),
            KeeperPlacement::Process(command) => {
                Self::process(command, backing, guest_boots, dir).await.map(Some)
            }
            KeeperPlacement::Elsewhere => Ok(None),
        }
    }

    /// Takes charge of the keeper that serves the folder, or starts a new one.
    pub(super) async fn adopt(
        known: Option<&ProcessIdentity>,
        placement: &KeeperPlacement,
        backing: &ChannelBacking,
        dir: &ChannelDir,
    ) -> Result<Option<Self>, KeeperStartError> {
        if matches!(placement, KeeperPlacement::Elsewhere) {
            return Ok(None);
        }
        let found = known.and_then(|known| Process::find(known).ok().flatten());
        if let Some(found) = found
            && keeper::wait_ready(dir, READY_LIMIT).await.is_ok()
        {
            return Ok(Some(Self::Adopted(found)));
        }
        Self::start(placement, backing, false, dir).await
    }

    /// Who it is, if it is a process.
    pub(super) fn identity(&self) -> Option<ProcessIdentity> {
        match self {
            Self::Task { .. } => None,
            Self::Process(_, identity) => Some(*identity),
            Self::Adopted(process) => Some(process.identity()),
        }
    }

    async fn task(
        backing: &ChannelBacking,
        guest_boots: bool,
        dir: &ChannelDir,
    ) -> Result<Self, KeeperStartError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let config = Keeper::new(dir.clone());
        let config = match backing {
            ChannelBacking::VirtioSerial => config,
            ChannelBacking::Vsock { .. } => config.over_vsock(guest_boots),
        };
        let mut task = tokio::spawn(keeper::run(config, async {
            // A dropped sender is a stop as well.
            let _ = stopped.await;
        }));
        tokio::select! {
            ready = keeper::wait_ready(dir, READY_LIMIT) => ready?,
            ended = &mut task => {
                ended.map_err(|_| KeeperStartError::Ended)??;
                return Err(KeeperStartError::Ended);
            }
        }
        let task = tokio::spawn(async move {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the keeper of a channel failed"),
                Err(error) => tracing::error!(%error, "the keeper of a channel died"),
            }
        });
        Ok(Self::Task { stop, task })
    }

    async fn process(
        command: &[String],
        backing: &ChannelBacking,
        guest_boots: bool,
        dir: &ChannelDir,
    ) -> Result<Self, KeeperStartError> {
        let over: &[&str] = match (backing, guest_boots) {
            (ChannelBacking::VirtioSerial, _) => &[],
            (ChannelBacking::Vsock { .. }, false) => &["--vsock"],
            (ChannelBacking::Vsock { .. }, true) => &["--vsock", "--guest-boots"],
        };
        let spawned = |source| KeeperStartError::Spawn { command: command.join(" "), source };
        let (program, arguments) =
            command.split_first().ok_or_else(|| spawned(io::ErrorKind::InvalidInput.into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--dir")
            .arg(dir.path())
            .args(over)
            .env(PART, dir.path().join("keeper"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(spawned)?;
        let ready = tokio::select! {
            ready = keeper::wait_ready(dir, READY_LIMIT) => ready.map_err(KeeperStartError::from),
            _ = child.wait() => Err(KeeperStartError::Ended),
        };
        if let Err(error) = ready {
            // It may have ended by itself.
            let _ = child.kill().await;
            return Err(error);
        }
        let identity = child.id().and_then(|pid| Process::open(pid).ok());
        let identity = identity.ok_or(KeeperStartError::Ended)?.identity();
        Ok(Self::Process(child, identity))
    }

    /// Stops it and waits until it is gone, by force when it takes too long; then takes away the
    /// lock it leaves.
    pub(super) async fn stop(self, dir: &ChannelDir, limit: Duration) {
        self.end(limit).await;
        remove_lock(dir);
    }

    async fn end(self, limit: Duration) {
        match self {
            Self::Task { stop, mut task } => {
                // It may have ended with its VM.
                let _ = stop.send(());
                if timeout(limit, &mut task).await.is_err() {
                    task.abort();
                }
            }
            Self::Adopted(process) => {
                for end in [Process::terminate, Process::kill] {
                    // Failure means it is gone.
                    let _ = end(&process);
                    if timeout(limit, process.ended_unreaped()).await.is_ok() {
                        return;
                    }
                }
            }
            Self::Process(mut child, _) => {
                ask_to_end(&child);
                if timeout(limit, child.wait()).await.is_err() {
                    // It cannot be gone before we have waited for it.
                    let _ = child.kill().await;
                }
            }
        }
    }
}

/// Removes the lock of a keeper that is gone. A keeper cannot do so itself: somebody might just
/// have opened the file to lock it.
fn remove_lock(dir: &ChannelDir) {
    if keeper::is_running(dir) {
        return;
    }
    match std::fs::remove_file(dir.path().join("keeper.lock")) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "cannot remove the lock of a keeper that is gone"),
    }
}

/// Sends SIGTERM, unless the process was waited for already.
fn ask_to_end(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Failure means it is gone.
        let _ = kill_process(pid, Signal::TERM);
    }
}
