//! The agent's ends of a workload's pipes, read and written off its own thread.
//!
//! A pipe has a lock in the kernel, and whoever splices into it from something slow (a socket, a file
//! on a share) holds that lock while it waits: `cat` of a file on a 9P share does, with `sendfile`.
//! A read of our end then waits for the lock, non-blocking or not. On the agent's one thread that would
//! let any workload stop the agent, and one that waits for a share whose bytes this thread carries
//! stop it for ever. So this thread only asks whether a pipe is ready, which takes no lock, and the
//! reading and writing is done by a thread of the blocking pool, one per pipe that has something to
//! do at the moment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;

use crate::sys;

/// Bytes moved at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

type Watched = Arc<AsyncFd<OwnedFd>>;

/// What the pool did: the memory, how much of it counts.
type Done = (Vec<u8>, io::Result<usize>);

/// What a workload writes.
#[derive(Debug)]
pub struct Outlet {
    pipe: Watched,
    state: Reading,
}

#[derive(Debug)]
enum Reading {
    /// Memory for the next read.
    Idle(Vec<u8>),
    /// Under way.
    Busy(JoinHandle<Done>),
    /// Read and not yet handed on: the bytes from `at` to `end`.
    Have { buffer: Vec<u8>, at: usize, end: usize },
}

/// What a workload reads. What was taken is written before it is shut.
#[derive(Debug)]
pub struct Inlet {
    pipe: Option<Watched>,
    state: Writing,
}

#[derive(Debug)]
enum Writing {
    Idle(Vec<u8>),
    /// The bytes from `at` on are still to be written.
    Have {
        buffer: Vec<u8>,
        at: usize,
    },
    Busy {
        job: JoinHandle<Done>,
        at: usize,
    },
}

impl Outlet {
    /// Takes over the reading end of a pipe, which must not block. Needs a tokio runtime.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: Arc::new(sys::watch(pipe)?), state: Reading::Idle(Vec::new()) })
    }
}

impl Inlet {
    /// Takes over the writing end of a pipe, which must not block. Needs a tokio runtime.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: Some(Arc::new(sys::watch(pipe)?)), state: Writing::Idle(Vec::new()) })
    }
}

/// Whether the pipe is ready, by a question that takes no lock of it.
fn is_ready(pipe: &AsyncFd<OwnedFd>, wanted: PollFlags) -> bool {
    let mut asked = [PollFd::new(pipe.get_ref().as_fd(), wanted)];
    // A question that fails is answered by the read or write itself.
    poll(&mut asked, PollTimeout::ZERO).map_or(true, |count| count > 0)
}

/// Until it may be read or written. What the runtime believes is put right by asking: an event that
/// comes between the belief and the question is not lost, as the runtime then believes anew.
fn poll_ready(pipe: &Watched, cx: &mut Context<'_>, wanted: PollFlags) -> Poll<io::Result<()>> {
    loop {
        let mut guard = if wanted == PollFlags::POLLIN {
            ready!(pipe.poll_read_ready(cx))?
        } else {
            ready!(pipe.poll_write_ready(cx))?
        };
        if is_ready(pipe, wanted) {
            return Poll::Ready(Ok(()));
        }
        guard.clear_ready();
    }
}

fn job_died<T>(_: T) -> io::Error {
    io::Error::other("the runtime is shut down")
}

impl AsyncRead for Outlet {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                Reading::Have { buffer, at, end } if at == end => {
                    this.state = Reading::Idle(std::mem::take(buffer));
                }
                Reading::Have { buffer, at, end } => {
                    let count = into.remaining().min(*end - *at);
                    into.put_slice(&buffer[*at..*at + count]);
                    *at += count;
                    return Poll::Ready(Ok(()));
                }
                Reading::Idle(memory) => {
                    ready!(poll_ready(&this.pipe, cx, PollFlags::POLLIN))?;
                    let (pipe, mut buffer) = (Arc::clone(&this.pipe), std::mem::take(memory));
                    this.state = Reading::Busy(tokio::task::spawn_blocking(move || {
                        buffer.resize(CHUNK, 0);
                        let count = nix::unistd::read(pipe.get_ref(), &mut buffer);
                        (buffer, count.map_err(io::Error::from))
                    }));
                }
                Reading::Busy(job) => {
                    let (buffer, count) = ready!(Pin::new(job).poll(cx)).map_err(job_died)?;
                    match count {
                        Ok(0) => {
                            this.state = Reading::Idle(buffer);
                            return Poll::Ready(Ok(()));
                        }
                        Ok(end) => this.state = Reading::Have { buffer, at: 0, end },
                        Err(error) => {
                            this.state = Reading::Idle(buffer);
                            if error.kind() != io::ErrorKind::WouldBlock {
                                return Poll::Ready(Err(error));
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Inlet {
    /// Until all that was taken is written.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                Writing::Idle(_) => return Poll::Ready(Ok(())),
                Writing::Have { buffer, at } if *at == buffer.len() => {
                    let mut memory = std::mem::take(buffer);
                    memory.clear();
                    self.state = Writing::Idle(memory);
                }
                Writing::Have { buffer, at } => {
                    let Some(pipe) = &self.pipe else {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    };
                    ready!(poll_ready(pipe, cx, PollFlags::POLLOUT))?;
                    let (pipe, buffer, at) = (Arc::clone(pipe), std::mem::take(buffer), *at);
                    let job = tokio::task::spawn_blocking(move || {
                        let count = nix::unistd::write(pipe.get_ref(), &buffer[at..]);
                        (buffer, count.map_err(io::Error::from))
                    });
                    self.state = Writing::Busy { job, at };
                }
                Writing::Busy { job, at } => {
                    let (buffer, count) = ready!(Pin::new(job).poll(cx)).map_err(job_died)?;
                    let at = *at;
                    match count {
                        Ok(count) => self.state = Writing::Have { buffer, at: at + count },
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.state = Writing::Have { buffer, at };
                        }
                        Err(error) => {
                            self.state = Writing::Idle(Vec::new());
                            return Poll::Ready(Err(error));
                        }
                    }
                }
            }
        }
    }
}

impl AsyncWrite for Inlet {
    /// Takes bytes once those before are written, so that a failure is told to the next call.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if this.pipe.is_none() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Writing::Idle(memory) = &mut this.state else { return Poll::Ready(Ok(0)) };
        let mut buffer = std::mem::take(memory);
        let count = bytes.len().min(CHUNK);
        buffer.extend_from_slice(&bytes[..count]);
        this.state = Writing::Have { buffer, at: 0 };
        // Begins at once; whether it went well is for the next call to say.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let drained = ready!(this.poll_drain(cx));
        this.pipe = None;
        Poll::Ready(drained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn not_blocking(end: OwnedFd) -> OwnedFd {
        fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        end
    }

    #[tokio::test]
    async fn megabytes_go_through_both_ends_whole() {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut outlet = Outlet::new(not_blocking(from)).unwrap();
        let mut inlet = Inlet::new(not_blocking(to)).unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            inlet.write_all(&sent).await.unwrap();
            inlet.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        outlet.read_to_end(&mut got).await.unwrap();
        writing.await.unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_told() {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut inlet = Inlet::new(not_blocking(to)).unwrap();
        drop(from);
        let failed = async {
            inlet.write_all(b"x").await?;
            inlet.flush().await
        };
        assert_eq!(failed.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// The other side splices from a socket on which nothing comes, and holds the pipe's lock.
    #[tokio::test]
    async fn a_pipe_whose_lock_is_held_stops_nobody() {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut outlet = Outlet::new(not_blocking(from)).unwrap();
        nix::unistd::write(&to, b"x").unwrap();
        let (silent, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let holder = std::thread::spawn(move || {
            use nix::fcntl::{SpliceFFlags, splice};
            splice(&silent, None, &to, None, 100, SpliceFFlags::empty())
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut byte = [0];
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, async {
            tokio::select! {
                // Whether the lock is held while waiting depends on the kernel.
                _ = outlet.read(&mut byte) => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(300)) => {}
            }
        })
        .await
        .expect("this thread goes on");
        drop(other);
        holder.join().unwrap().unwrap();
    }
}
