//! The agent's side of a workload's terminal.
//!
//! A pseudo terminal's master is one descriptor for both directions. When the last process has
//! closed the other side, reading fails with EIO, which means the end of the stream and nothing
//! worse. Input has no end on a terminal: what a pipe says by closing, a person says with a
//! control character, so `shutdown` of the input sends that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use tokio::io::AsyncWrite;
use tokio::io::unix::AsyncFd;

use super::drain::Rest;
use crate::sys;

/// End of transmission: what Ctrl-D sends.
const END_OF_INPUT: u8 = 4;

/// A master; clones share it.
#[derive(Debug, Clone)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

/// The direction from the workload.
#[derive(Debug)]
pub struct Output(Terminal);

/// The direction to the workload.
#[derive(Debug)]
pub struct Input {
    terminal: Terminal,
    ended: bool,
}

impl Terminal {
    /// Makes a terminal of the VM itself and tells the name of its other side.
    pub fn open() -> io::Result<(Self, PathBuf)> {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = PathBuf::from(ptsname_r(&master)?);
        Ok((Self::from_master(master.into())?, name))
    }

    /// Takes over a master made elsewhere. Needs a tokio runtime.
    pub fn from_master(master: OwnedFd) -> io::Result<Self> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Self { master: Arc::new(sys::watch(master)?) })
    }

    /// Sets its size in characters.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        sys::set_window_size(self.master.as_fd(), width, height)
    }

    /// Reads what the workload writes.
    pub fn output(&self) -> Output {
        Output(self.clone())
    }

    /// Writes what the workload reads.
    pub fn input(&self) -> Input {
        Input { terminal: self.clone(), ended: false }
    }

    fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.master.poll_write_ready(context))?;
            let write = |master: &AsyncFd<OwnedFd>| Ok(nix::unistd::write(master, bytes)?);
            match guard.try_io(write) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
}

/// It is read where it is polled: what is there would have come.
impl Rest for Output {
    fn is_at_rest(&self) -> bool {
        true
    }
}

impl Stream for Output {
    type Item = io::Result<Bytes>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        // A terminal gives no more at once.
        let mut buffer = [0; 4096];
        loop {
            let mut guard = ready!(self.0.master.poll_read_ready(context))?;
            let read = |master: &AsyncFd<OwnedFd>| {
                match nix::unistd::read(master, &mut buffer) {
                    // Nobody holds the other side any more.
                    Err(Errno::EIO) => Ok(0),
                    other => Ok(other?),
                }
            };
            match guard.try_io(read) {
                Ok(Ok(0)) => return Poll::Ready(None),
                Ok(Ok(length)) => {
                    return Poll::Ready(Some(Ok(Bytes::copy_from_slice(&buffer[..length]))));
                }
                Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.terminal.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            // A workload that is gone reads no more.
            match ready!(self.terminal.poll_write(context, &[END_OF_INPUT])) {
                Err(error) if error.raw_os_error() != Some(libc::EIO) => {
                    return Poll::Ready(Err(error));
                }
                Ok(_) | Err(_) => {}
            }
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}
