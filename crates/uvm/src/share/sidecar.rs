//! A process that serves one thing, and is not ours to lose: started or adopted, watched, ended.
//!
//! What it says goes into a pipe that it holds open itself, so that it neither waits for a reader nor
//! dies of the want of one; whoever adopts it reads on.

use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_vmm::process::{Process, ProcessIdentity, reopen_stderr, stderr_pipe};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// What is kept of what it says, in bytes.
const TAIL: usize = 2048;

/// The process.
#[derive(Debug)]
pub(crate) struct Sidecar {
    process: Arc<Process>,
    ended: watch::Receiver<bool>,
    said: Arc<Mutex<Vec<u8>>>,
    /// Waits for the process, so that it leaves no zombie; ends with it.
    _waiting: JoinHandle<()>,
}

impl Sidecar {
    /// Takes charge of a process that was just started; `complaints` is what it says.
    pub(crate) fn watch(mut child: Child, complaints: Receiver) -> io::Result<Self> {
        // It is not waited for before its identity is known, so the number is its own.
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
        let process = Arc::new(Process::open(pid)?);
        let ended = async move {
            // Its failure is told by what it said.
            let _ = child.wait().await;
        };
        Ok(Self::follow(process, Some(complaints), ended))
    }

    /// Takes charge of one that another process started; none if it is gone.
    pub(crate) fn adopt(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let Some(process) = Process::find(identity)? else { return Ok(None) };
        let process = Arc::new(process);
        let watched = process.clone();
        let ended = async move { watched.ended_unreaped().await };
        Ok(Some(Self::follow(process, reopen_stderr(identity.pid).ok(), ended)))
    }

    /// Starts a command as one.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let (stderr, complaints) = stderr_pipe()?;
        command.stdout(Stdio::null()).stderr(Stdio::from(stderr));
        let child = command.spawn()?;
        // The command holds our copy of its end.
        drop(command);
        Self::watch(child, complaints)
    }

    /// Takes charge of a process of ours that was just started; `complaints` is what it says.
    pub(crate) fn own(process: Process, complaints: Receiver) -> Self {
        let process = Arc::new(process);
        let watched = process.clone();
        let ended = async move {
            // Its failure is told by what it said.
            let _ = watched.ended().await;
        };
        Self::follow(process, Some(complaints), ended)
    }

    fn follow(
        process: Arc<Process>,
        complaints: Option<Receiver>,
        over: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (tell, ended) = watch::channel(false);
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = said.clone();
        let waiting = tokio::spawn(async move {
            tokio::pin!(over);
            tokio::select! {
                () = &mut over => {}
                () = listen(complaints.as_ref(), &kept) => over.await,
            }
            if let Some(pipe) = &complaints {
                take_what_is_there(pipe, &kept);
            }
            tell.send_replace(true);
        });
        Self { process, ended, said, _waiting: waiting }
    }

    /// Who it is.
    pub(crate) fn identity(&self) -> ProcessIdentity {
        self.process.identity()
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
        for end in [Process::terminate, Process::kill] {
            if self.is_dead() {
                return;
            }
            if let Err(error) = end(&self.process) {
                tracing::warn!(pid = self.process.pid(), %error, "cannot end a sidecar");
            }
            if timeout(limit, self.ended()).await.is_ok() {
                return;
            }
        }
        tracing::error!(pid = self.process.pid(), "a sidecar does not end");
    }
}

/// Reads what it says until nobody can say more.
async fn listen(pipe: Option<&Receiver>, kept: &Mutex<Vec<u8>>) {
    let Some(pipe) = pipe else { return };
    while pipe.readable().await.is_ok() {
        if !take_what_is_there(pipe, kept) {
            return;
        }
    }
}

/// Takes what the pipe holds now; whether more can come.
fn take_what_is_there(pipe: &Receiver, kept: &Mutex<Vec<u8>>) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match pipe.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let excess = kept.len().saturating_sub(TAIL);
                kept.drain(..excess);
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
