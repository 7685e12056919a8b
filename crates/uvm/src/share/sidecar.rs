//! A process that serves one thing, and is not ours to lose: started, watched, ended.

use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// What is kept of what it says, in bytes.
const TAIL: usize = 2048;

/// The process.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pid: Option<Pid>,
    ended: watch::Receiver<bool>,
    said: Arc<Mutex<Vec<u8>>>,
    /// Waits for the process, so that it leaves no zombie; ends with it.
    _waiting: JoinHandle<()>,
}

impl Sidecar {
    /// Takes charge of a process that was started with a piped standard error.
    pub(crate) fn watch(mut child: Child) -> Self {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let (tell, ended) = watch::channel(false);
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = said.clone();
        let mut stderr = child.stderr.take();
        let waiting = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Some(stream) = &mut stderr
                && let Ok(count @ 1..) = stream.read(&mut buffer).await
            {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let excess = kept.len().saturating_sub(TAIL);
                kept.drain(..excess);
            }
            // Its failure is told by what it said.
            let _ = child.wait().await;
            tell.send_replace(true);
        });
        Self { pid, ended, said, _waiting: waiting }
    }

    /// Starts a command as one.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(Self::watch(command.spawn()?))
    }

    /// Whether it has ended.
    pub(crate) fn is_dead(&self) -> bool {
        *self.ended.borrow()
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// Until it has ended.
    pub(crate) async fn ended(&self) {
        // The sender goes only after it has told.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Ends it, by force when it takes too long.
    pub(crate) async fn stop(&self, limit: Duration) {
        for signal in [Signal::TERM, Signal::KILL] {
            if self.is_dead() {
                return;
            }
            let Some(pid) = self.pid else { return };
            // It is not waited for yet, so the number is still its own.
            let _ = kill_process(pid, signal);
            if timeout(limit, self.ended()).await.is_ok() {
                return;
            }
        }
        tracing::error!(pid = ?self.pid, "a sidecar does not end");
    }
}
