//! The keeper: the one long-lived client of a VM's two ports.
//!
//! It outlives the runtime so that the ports need not see it die, and knows nothing of what it carries:
//!
//! ```text
//!   D/vsock ──────────► dial the guest ─┐            ┌── D/control.sock ── QEMU ── the guest
//!                                       ├─ two lanes ┤
//!   D/vsock_<port> ◄── the guest dials ─┘            └── D/streams.sock ── QEMU
//! ```
//!
//! One keeper per folder: it holds `flock` on `D/keeper.lock` for life. It is ready when `D/vsock`
//! takes connections, which [`wait_ready`] waits for; that the guest answers is not part of it, a
//! dial simply takes until then. It ends when told to, or when QEMU is gone for good.
//!
//! It holds little memory: no buffers per connection, and what the streams of a session may have
//! waiting is bounded by their windows.

mod dial;
mod lane;
mod splice;
mod way;

use super::area::AREA_FILE;
use super::folder::{self, ChannelDir, ChannelListener, VSOCK};
use super::mux::{Incoming, Limits};
use crate::port;
use lane::Lane;
use rustix::fs::{FlockOperation, Mode, OFlags};
use splice::Scratch;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::debug;

/// The file whose lock says that a keeper lives.
const LOCK: &str = "keeper.lock";

/// The daemon's socket to the guest, in [`vsock_folder`] (its option `uds-path`).
pub const VSOCK_SOCKET: &str = "guest.sock";

/// Why a keeper cannot keep.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// Another keeper serves the folder.
    #[error("another keeper serves {}", dir.display())]
    Busy {
        /// The channel's folder.
        dir: PathBuf,
    },
    /// The lock file cannot be had.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket to dial cannot be made.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU's socket never appeared.
    #[error("no VM listens at {} after {} s", socket.display(), after.as_secs())]
    NeverCame {
        /// QEMU's socket.
        socket: PathBuf,
        /// The time-out.
        after: Duration,
    },
    /// QEMU's socket is there, but we cannot connect.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// QEMU's socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not ready in time.
    #[error("no keeper serves {} after {} ms", dir.display(), after.as_millis())]
    NotReady {
        /// The channel's folder.
        dir: PathBuf,
        /// The time-out.
        after: Duration,
    },
}

/// What a keeper needs to know.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// The channel's folder.
    pub dir: ChannelDir,
    /// QEMU's socket of the port `coracle.control`.
    pub control: PathBuf,
    /// QEMU's socket of the port `coracle.streams`.
    pub streams: PathBuf,
    /// The socket of a `vhost-device-vsock` through which the guest is dialled, instead of through its
    /// two ports. That of the streams says then whether QEMU lives.
    pub vsock: Option<PathBuf>,
    /// The guest is about to boot, and is not dialled over AF_VSOCK before it has written a byte into its
    /// port of the streams.
    pub guest_boots: bool,
    /// How long QEMU may take to make its sockets.
    pub start: Duration,
    /// How long a socket that was there may refuse before QEMU is taken for gone.
    pub gone: Duration,
    /// How long the guest may take to answer a HELLO; longer after repeated failure.
    pub handshake: Duration,
    /// How long a dial waits for a session and an answer.
    pub dial: Duration,
}

impl Keeper {
    /// A keeper of `D` with `D/control.sock` and `D/streams.sock`.
    #[must_use]
    pub fn new(dir: ChannelDir) -> Self {
        let control = dir.path().join("control.sock");
        let streams = dir.path().join("streams.sock");
        Keeper {
            dir,
            control,
            streams,
            vsock: None,
            guest_boots: false,
            start: Duration::from_secs(30),
            gone: Duration::from_secs(1),
            handshake: Duration::from_millis(300),
            dial: Duration::from_secs(30),
        }
    }

    /// The same, dialling the guest over AF_VSOCK, which perhaps boots still.
    #[must_use]
    pub fn over_vsock(self, guest_boots: bool) -> Self {
        let vsock = Some(vsock_folder(&self.dir).join(VSOCK_SOCKET));
        Keeper { vsock, guest_boots, ..self }
    }
}

/// The folder of a `vhost-device-vsock` that carries the channel in `dir`, which may be the daemon's own.
#[must_use]
pub fn vsock_folder(dir: &ChannelDir) -> PathBuf {
    dir.path().join("vsock.d")
}

/// Keeps a channel until `stop` is ready or QEMU is gone. All its tasks and sockets are gone when
/// this returns, and soon after it is dropped.
///
/// # Errors
/// [`KeeperError`]; that QEMU went away after it was there is no error.
pub async fn run(config: Keeper, stop: impl Future<Output = ()>) -> Result<(), KeeperError> {
    let _lock = lock(config.dir.path())?;
    let listener = ChannelListener::bind(config.dir.path(), VSOCK)
        .map_err(|source| KeeperError::Listen { path: config.dir.path().join(VSOCK), source })?;
    let (sender, mut incoming) = mpsc::channel(Limits::STREAMS.streams);
    let mut lanes = JoinSet::new();
    let mut streams = Lane::new(&config, config.streams.clone(), Limits::STREAMS);
    let mut sessions = dial::Sessions { control: streams.sessions(), streams: streams.sessions() };
    if config.vsock.is_none() {
        streams = streams.with_area(config.dir.path().join(AREA_FILE));
        let control = Lane::new(&config, config.control.clone(), Limits::CONTROL)
            .ending_with(streams.sessions());
        sessions.control = control.sessions();
        lanes.spawn(control.run(sender.clone()));
    }
    lanes.spawn(streams.run(sender));

    let scratch = Arc::new(Scratch::new());
    let mut connections = JoinSet::new();
    let most = Limits::CONTROL.streams + Limits::STREAMS.streams;
    tokio::pin!(stop);
    let end = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            // A VM that has lost one port has lost both.
            Some(end) = lanes.join_next() => break end.unwrap_or(Ok(())),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            Some(Incoming { port, stream }) = incoming.recv() => {
                let dir = config.dir.clone();
                connections.spawn(dial::from_guest(dir, port, stream, Arc::clone(&scratch)));
            }
            accepted = listener.accept(), if connections.len() < 2 * most => match accepted {
                Ok(socket) => {
                    let sessions = sessions.clone();
                    connections.spawn(dial::from_host(
                        socket, sessions, config.dial, Arc::clone(&scratch),
                    ));
                }
                Err(error) => {
                    // Out of descriptors: others must end first.
                    debug!(%error, "cannot accept");
                    sleep(Duration::from_millis(20)).await;
                }
            },
        }
    };
    lanes.shutdown().await;
    connections.shutdown().await;
    end
}

/// Waits until a keeper serves the folder.
///
/// # Errors
/// [`KeeperError::NotReady`] after `limit`.
pub async fn wait_ready(dir: &ChannelDir, limit: Duration) -> Result<(), KeeperError> {
    let deadline = Instant::now() + limit;
    loop {
        if is_running(dir) && folder::connect(dir.path(), VSOCK).await.is_ok() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(KeeperError::NotReady { dir: dir.path().to_owned(), after: limit });
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a keeper lives: somebody holds its lock.
#[must_use]
pub fn is_running(dir: &ChannelDir) -> bool {
    let path = dir.path().join(LOCK);
    let Ok(file) = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    // A shared try, so that two who ask do not mistake each other for a keeper.
    matches!(
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

/// Takes the lock, or says that another has it. Someone who merely asks holds it for an instant.
fn lock(dir: &Path) -> Result<OwnedFd, KeeperError> {
    let path = dir.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let fail =
        |error: rustix::io::Errno| KeeperError::Lock { path: path.clone(), source: error.into() };
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
    for _ in 0..50 {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(fail(error)),
        }
    }
    Err(KeeperError::Busy { dir: dir.to_owned() })
}

/// Which port goes over which lane.
fn is_control(port: u32) -> bool {
    port == port::BRIDGE
}
