//! The agent's side of its helpers.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::request::{self, Failure, FailureKind, Reply, Request, descriptor};
use crate::process::program::OwnProgram;
use crate::reaper::{Child, Reaper};
use crate::sys;

/// How long a helper may take before it is killed, and the agent over a container's root: a share behind a rootfs may never answer.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// How much of a helper's log becomes part of an error text.
const LOG_LIMIT: usize = 4096;

/// Why a helper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be started or listened to.
    #[error("running the helper to {operation}")]
    Run {
        /// What it was to do.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It said no.
    #[error("{failure}{}", cause(log))]
    Refused {
        /// What it said.
        failure: Failure,
        /// What it logged, where libcontainer tells the cause.
        log: String,
    },
    /// It said nothing and is gone.
    #[error("the helper to {operation} ended without an answer{}", cause(log))]
    Silent {
        /// What it was to do.
        operation: &'static str,
        /// What it logged.
        log: String,
    },
    /// It was killed because it took too long.
    #[error("the helper to {operation} took longer than {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// What it was to do.
        operation: &'static str,
    },
}

impl LaunchError {
    /// Whether the helper was stopped half-way. One that refuses has undone what it did.
    pub fn leaves_something(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::TimedOut { .. } => true,
            Self::Run { .. } | Self::Refused { .. } => false,
        }
    }
}

/// What a helper made.
#[derive(Debug)]
pub struct Launched {
    /// The workload's process, when there is one.
    pub process: Option<Child>,
    /// The master of its terminal, when it has one.
    pub terminal: Option<OwnedFd>,
}

/// Starts helpers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: Arc<OwnProgram>,
    reaper: Reaper,
}

impl Launcher {
    /// A launcher whose helpers, and what they leave behind, are reaped by `reaper`.
    pub fn new(program: OwnProgram, reaper: Reaper) -> Self {
        Self { program: Arc::new(program), reaper }
    }

    /// The reaper of everything started here.
    pub fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    /// Has a helper do `request` and waits for it. The workload gets `stdio`.
    pub async fn run(
        &self,
        request: &Request,
        stdio: [BorrowedFd<'_>; 3],
        init: Option<BorrowedFd<'_>>,
    ) -> Result<Launched, LaunchError> {
        let operation = operation(request);
        let failed = |source| LaunchError::Run { operation, source };
        let expectation = self.reaper.expect();
        let helper = self.start(request, stdio, init).map_err(failed)?;
        let heard = timeout(TIMEOUT, helper.listen()).await;
        let Ok(heard) = heard else {
            drop(helper.child.signal(Signal::SIGKILL));
            return Err(LaunchError::TimedOut { operation });
        };
        let heard = heard.map_err(failed)?;
        if let Some(failure) = heard.failure {
            // What it logs after its last word is part of the story.
            drop(timeout(Duration::from_secs(1), helper.child.wait()).await);
            return Err(LaunchError::Refused { failure, log: helper.log() });
        }
        let wants_process = matches!(request, Request::Create { .. } | Request::Exec(_));
        let process = heard.pid.map(|pid| expectation.claim(pid));
        if !heard.ready && (!wants_process || process.is_none()) {
            drop(timeout(Duration::from_secs(1), helper.child.wait()).await);
            return Err(LaunchError::Silent { operation, log: helper.log() });
        }
        Ok(Launched { process, terminal: heard.terminal })
    }

    fn start(
        &self,
        request: &Request,
        stdio: [BorrowedFd<'_>; 3],
        init: Option<BorrowedFd<'_>>,
    ) -> io::Result<Helper> {
        let mut document = memory_file("request")?;
        document.write_all(&serde_json::to_vec(request)?)?;
        document.rewind()?;
        let log = memory_file("log")?;
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        // The helper's end blocks: it has nothing else to do.
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
        setsockopt(&theirs, sockopt::SndBuf, &(256 * 1024))?;
        let [stdin, stdout, stderr] = stdio;
        let mut descriptors: Vec<(BorrowedFd<'_>, RawFd)> = vec![
            (stdin, 0),
            (stdout, 1),
            (stderr, 2),
            (document.as_fd(), descriptor::REQUEST),
            (theirs.as_fd(), descriptor::REPLY),
            (log.as_fd(), descriptor::LOG),
        ];
        descriptors.extend(init.map(|init| (init, descriptor::INIT)));
        let arguments = ["coracle-guest", "container", operation(request)];
        let child = self.program.spawn(&self.reaper, &arguments, &descriptors)?;
        Ok(Helper { child, replies: sys::watch(ours)?, log })
    }
}

fn operation(request: &Request) -> &'static str {
    match request {
        Request::Create { .. } => "create",
        Request::Start { .. } => "start",
        Request::Exec(_) => "exec",
        Request::Devices { .. } => "devices",
        Request::Delete { .. } => "delete",
    }
}

/// A running helper.
struct Helper {
    child: Child,
    replies: AsyncFd<OwnedFd>,
    log: File,
}

/// What a helper has said.
#[derive(Default)]
struct Heard {
    pid: Option<Pid>,
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
    ready: bool,
}

impl Helper {
    /// Listens until the helper is ready or has failed, or nobody is left to speak: the workload
    /// of an exec holds the socket until it executes its program.
    async fn listen(&self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        loop {
            let mut guard = self.replies.readable().await?;
            let packet = match guard.try_io(|socket| request::receive(socket.as_fd())) {
                Ok(packet) => packet?,
                Err(_would_block) => continue,
            };
            match packet {
                None => return Ok(heard),
                Some((Reply::Pid(pid), _)) => heard.pid = Some(Pid::from_raw(pid)),
                Some((Reply::Terminal, terminal)) => heard.terminal = terminal,
                Some((Reply::Ready, _)) => {
                    heard.ready = true;
                    return Ok(heard);
                }
                Some((Reply::Failed(failure), _)) => {
                    heard.failure = Some(failure);
                    return Ok(heard);
                }
            }
        }
    }

    fn log(&self) -> String {
        let mut bytes = vec![0; LOG_LIMIT];
        let length = self.log.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    }
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// The first line of a log behind an error text: it was written nearest to the cause.
fn cause(log: &str) -> String {
    log.lines().next().map(|line| format!(" ({line})")).unwrap_or_default()
}

/// The hint for a failure that people know by a shell's exit code.
pub fn kind(error: &LaunchError) -> FailureKind {
    match error {
        LaunchError::Refused { failure, .. } => failure.kind,
        LaunchError::Run { .. } | LaunchError::Silent { .. } | LaunchError::TimedOut { .. } => {
            FailureKind::Other
        }
    }
}
