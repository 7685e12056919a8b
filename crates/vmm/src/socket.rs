//! Unix sockets at paths of any length.
//!
//! A socket's address holds 107 bytes of path, which a state directory soon fills. Naming the
//! directory by an open descriptor, `/proc/self/fd/<n>/<name>`, leaves only the name to count.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

/// Binds and listens; what an ended VM left at the path is replaced. Only our user may connect.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (_directory, short) = shorten(path)?;
    let listener = UnixListener::bind(&short)?;
    rustix::fs::chmod(&short, Mode::from_raw_mode(0o600))?;
    Ok(listener.into())
}

/// Binds and listens, for ourselves to accept.
pub(crate) fn listen_here(path: &Path) -> io::Result<tokio::net::UnixListener> {
    let listener = UnixListener::from(listen(path)?);
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Connects.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = shorten(path)?;
    UnixStream::connect(short).await
}

/// The path through a descriptor of its directory, which must stay open while it is used.
fn shorten(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(parent.unwrap_or(Path::new(".")))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((directory, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_under_a_very_long_path_can_be_dialled() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("qmp.sock");
        let _listener = listen(&path).unwrap();
        connect(&path).await.unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        drop(listen(&path).unwrap());
        listen(&path).unwrap();
    }
}
