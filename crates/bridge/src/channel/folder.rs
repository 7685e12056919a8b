//! The channel as a folder of unix sockets, in the convention of Firecracker and Cloud Hypervisor.
//!
//! ```text
//! D/vsock           the host dials the guest: CONNECT <port>\n, answered by OK <n>\n
//! D/vsock_<port>    the host listens; the guest dials
//! ```
//!
//! What stands behind the folder does not matter to those who use it. All paths go through
//! `/proc/self/fd`, since a socket's path may have no more than 107 bytes and a folder's may.

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Connections that may wait to be accepted. A full backlog would hold up the guest.
const BACKLOG: i32 = 4096;
/// How long the guest may take to answer a dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The socket the host dials.
pub(crate) const VSOCK: &str = "vsock";
/// The longest line of the dialogue, with its newline.
pub(crate) const LINE: usize = 32;

/// Why a port of the guest could not be dialled.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// Nothing carries the channel.
    #[error("cannot connect to the channel in {}", dir.display())]
    Connect {
        /// The channel's folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The guest has nobody at that port, or went away.
    #[error("the guest refused port {port}")]
    Refused {
        /// The dialled port.
        port: u32,
    },
    /// No answer in time.
    #[error("the guest did not answer at port {port} within {} ms", after.as_millis())]
    TimedOut {
        /// The dialled port.
        port: u32,
        /// The time-out.
        after: Duration,
    },
    /// Something else than `OK <n>` came back.
    #[error("dialling port {port}: the answer is not of the convention")]
    Answer {
        /// The dialled port.
        port: u32,
    },
    /// The connection broke in between.
    #[error("dialling port {port}: the connection failed")]
    Broken {
        /// The dialled port.
        port: u32,
        /// Why.
        source: io::Error,
    },
}

/// The folder of one VM's channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelDir {
    path: PathBuf,
}

impl ChannelDir {
    /// The folder at `path`, which should exist and belong to us alone.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        ChannelDir { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A socket that listens where the guest dials `port`, for somebody else to accept at. Its file
    /// stays when it is dropped.
    ///
    /// # Errors
    /// `AddrInUse` when there is a file already; else those of the file system.
    pub fn bind(&self, port: u32) -> io::Result<std::os::unix::net::UnixListener> {
        let dir = open_dir(&self.path)?;
        std::os::unix::net::UnixListener::bind(path_within(&dir, &format!("{VSOCK}_{port}")))
    }

    /// Listens where the guest dials `port`. A socket file nobody listens at any more is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there already; else those of the file system. Must be called
    /// within a tokio runtime.
    pub fn listen(&self, port: u32) -> io::Result<ChannelListener> {
        ChannelListener::bind(&self.path, &format!("{VSOCK}_{port}"))
    }

    /// Dials a port of the guest; waits up to 10 s for the answer.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn dial(&self, port: u32) -> Result<UnixStream, ChannelError> {
        self.dial_within(port, DIAL_TIMEOUT).await
    }

    /// [`ChannelDir::dial`] with another time-out.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn dial_within(
        &self,
        port: u32,
        limit: Duration,
    ) -> Result<UnixStream, ChannelError> {
        match timeout(limit, self.converse(port)).await {
            Ok(result) => result,
            Err(_) => Err(ChannelError::TimedOut { port, after: limit }),
        }
    }

    async fn converse(&self, port: u32) -> Result<UnixStream, ChannelError> {
        let mut stream = connect(&self.path, VSOCK)
            .await
            .map_err(|source| ChannelError::Connect { dir: self.path.clone(), source })?;
        let broken = |source| ChannelError::Broken { port, source };
        let dial = format!("CONNECT {port}\n");
        stream.write_all(dial.as_bytes()).await.map_err(broken)?;
        let line = match read_line(&mut stream).await {
            Ok(Some(line)) => line,
            Ok(None) => return Err(ChannelError::Refused { port }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ChannelError::Refused { port });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(ChannelError::Answer { port });
            }
            Err(error) => return Err(broken(error)),
        };
        match line.strip_prefix("OK ").map(str::parse::<u32>) {
            Some(Ok(_)) => Ok(stream),
            Some(Err(_)) | None => Err(ChannelError::Answer { port }),
        }
    }
}

/// Reads up to a newline and not a byte further, since what follows belongs to somebody else.
/// Nothing when the connection ends first.
///
/// # Errors
/// `InvalidData` when the line is too long or no text; else those of the socket.
pub(crate) async fn read_line(stream: &mut UnixStream) -> io::Result<Option<String>> {
    let mut line = Vec::with_capacity(LINE);
    while line.len() < LINE {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        if byte == *b"\n" {
            let text = String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
            return Ok(Some(text));
        }
        line.extend_from_slice(&byte);
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A folder opened only to reach what is in it.
fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, dir, flags, Mode::empty())?)
}

fn path_within(dir: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Connects to a socket in a folder, however long the folder's path is.
///
/// # Errors
/// Those of the connect; `WouldBlock` when the listener's backlog is full.
pub(crate) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = open_dir(dir)?;
    UnixStream::connect(path_within(&dir, name)).await
}

/// Connects to a socket by path, however long.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_path(path: &Path) -> io::Result<UnixStream> {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(dir), Some(name)) = (path.parent(), name) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    connect(dir, name).await
}

/// A place where the guest can dial us. Dropping it takes the socket file away.
#[derive(Debug)]
pub struct ChannelListener {
    listener: UnixListener,
    dir: OwnedFd,
    name: String,
    /// Device and inode of our socket file, so that we never remove another's.
    file: (u64, u64),
}

impl ChannelListener {
    pub(crate) fn bind(dir: &Path, name: &str) -> io::Result<Self> {
        let dir = open_dir(dir)?;
        let path = path_within(&dir, name);
        let socket = match bind_socket(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if is_served(&path)? {
                    return Err(error);
                }
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                bind_socket(&path)?
            }
            other => other?,
        };
        rustix::net::listen(&socket, BACKLOG)?;
        let file = identify(&dir, name)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(ChannelListener { listener, dir, name: name.to_owned(), file })
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of `accept(2)`; the listener stays good.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for ChannelListener {
    fn drop(&mut self) {
        if identify(&self.dir, &self.name).is_ok_and(|file| file == self.file) {
            // The folder may be going away as a whole.
            let _ = rustix::fs::unlinkat(&self.dir, self.name.as_str(), AtFlags::empty());
        }
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn bind_socket(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Whether somebody listens at a socket file.
fn is_served(path: &Path) -> io::Result<bool> {
    let socket = unix_socket()?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        // Connected, or its backlog is full, or we may not know.
        Ok(()) | Err(_) => Ok(true),
    }
}

fn identify(dir: &OwnedFd, name: &str) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino))
}
