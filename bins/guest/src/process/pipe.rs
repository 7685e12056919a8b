//! The agent's ends of a workload's pipes, read and written off the threads that serve everyone.
//!
//! A pipe has a lock in the kernel, and whoever splices into it from something slow (a socket, a file
//! on a share) holds that lock while it waits: `cat` of a file on a 9P share does, with `sendfile`.
//! A read of our end then waits for the lock, non-blocking or not. On the thread that carries the streams
//! of all workloads that would let any of them stop the others, and one that waits for a share whose
//! bytes this thread carries stop them for ever. So this thread only asks whether a pipe is ready, which
//! takes no lock, and the reading and writing is done by a [thread](super::hand) of the pipe's own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot::Receiver;

use super::drain::Rest;
use super::hand::Hand;
use crate::sys;

/// Bytes read at first; a pipe that has more is read in chunks from then on.
const FIRST: usize = 16 * 1024;

/// Bytes moved at once, and what a pipe of ours holds: going to another thread and back costs as much
/// as copying these, so they are many.
const CHUNK: usize = 256 * 1024;

type Watched = Arc<AsyncFd<OwnedFd>>;

/// What a read did: the memory, how much of it counts.
type Done = (Vec<u8>, io::Result<usize>);

/// What a workload writes.
#[derive(Debug)]
pub struct Outlet {
    pipe: Watched,
    state: Reading,
    hand: Hand,
}

#[derive(Debug)]
enum Reading {
    /// Memory for the next read.
    Idle(Vec<u8>),
    /// Under way.
    Busy(Receiver<Done>),
    /// Read and not yet handed on: the bytes from `at` to `end`.
    Have { buffer: Vec<u8>, at: usize, end: usize },
}

/// What a workload reads. What was taken is written before it is shut, whether anyone asks again or not.
#[derive(Debug)]
pub struct Inlet {
    pipe: Option<Arc<OwnedFd>>,
    tray: Arc<Mutex<Tray>>,
    hand: Hand,
}

/// What an inlet and its thread share.
#[derive(Debug, Default)]
struct Tray {
    /// Taken, and not yet with the thread.
    waiting: Vec<u8>,
    /// The thread is at it, and looks here again before it stops.
    is_busy: bool,
    /// What the thread met, for the next caller.
    failed: Option<io::Error>,
    /// Who waits for room or for the end of the work.
    waker: Option<Waker>,
}

impl Outlet {
    /// Takes over the reading end of a pipe, which must not block. Needs a tokio runtime.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        widen(&pipe);
        let pipe = Arc::new(sys::watch(pipe)?);
        Ok(Self { pipe, state: Reading::Idle(Vec::new()), hand: Hand::default() })
    }
}

impl Rest for Outlet {
    fn is_at_rest(&self) -> bool {
        matches!(self.state, Reading::Idle(_)) && !is_ready(&self.pipe)
    }
}

impl Inlet {
    /// Takes over the writing end of a pipe, which must not block.
    pub fn new(pipe: OwnedFd) -> Self {
        widen(&pipe);
        Self { pipe: Some(Arc::new(pipe)), tray: Arc::default(), hand: Hand::default() }
    }
}

/// Gives a pipe room for a chunk. It is as good without, only slower.
fn widen(pipe: &OwnedFd) {
    let size = i32::try_from(CHUNK).unwrap_or(i32::MAX);
    if let Err(error) = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)) {
        tracing::debug!(%error, "a pipe stays as it is");
    }
}

/// Whether there is something to read, by a question that takes no lock of it.
fn is_ready(pipe: &AsyncFd<OwnedFd>) -> bool {
    let mut asked = [PollFd::new(pipe.get_ref().as_fd(), PollFlags::POLLIN)];
    // A question that fails is answered by the read or write itself.
    poll(&mut asked, PollTimeout::ZERO).map_or(true, |count| count > 0)
}

/// Until it may be read. What the runtime believes is put right by asking: an event that
/// comes between the belief and the question is not lost, as the runtime then believes anew.
fn poll_ready(pipe: &Watched, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let mut guard = ready!(pipe.poll_read_ready(cx))?;
        if is_ready(pipe) {
            return Poll::Ready(Ok(()));
        }
        guard.clear_ready();
    }
}

fn job_died<T>(_: T) -> io::Error {
    io::Error::other("the thread of a pipe is gone")
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
                    let Poll::Ready(ready) = poll_ready(&this.pipe, cx) else {
                        // Quiet for now: its memory is for others.
                        *memory = Vec::new();
                        return Poll::Pending;
                    };
                    ready?;
                    let (pipe, mut buffer) = (Arc::clone(&this.pipe), std::mem::take(memory));
                    this.state = Reading::Busy(this.hand.start(move || {
                        let length = if buffer.is_empty() { FIRST } else { CHUNK };
                        buffer.resize(length, 0);
                        let count = nix::unistd::read(pipe.get_ref(), &mut buffer);
                        (buffer, count.map_err(io::Error::from))
                    })?);
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
    /// Until the thread has nothing to do.
    fn poll_drain(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut tray = lock(&self.tray);
        if let Some(error) = tray.failed.take() {
            return Poll::Ready(Err(error));
        }
        if tray.is_busy {
            tray.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

fn lock(tray: &Mutex<Tray>) -> MutexGuard<'_, Tray> {
    // Nothing under this lock panics half-way through a change.
    tray.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what is there until nothing is. It waits for a reader that is slow.
fn drain(pipe: &OwnedFd, tray: &Mutex<Tray>) {
    let mut bytes = Vec::new();
    loop {
        {
            let mut tray = lock(tray);
            // What was written last is memory for what comes next.
            bytes.clear();
            std::mem::swap(&mut bytes, &mut tray.waiting);
            tray.is_busy = !bytes.is_empty();
            if let Some(waker) = tray.waker.take() {
                waker.wake();
            }
            if bytes.is_empty() {
                // Nothing to do for now: its memory is for others.
                tray.waiting = Vec::new();
                return;
            }
        }
        if let Err(error) = write_all(pipe, &bytes) {
            let failed = Tray { failed: Some(error), ..Tray::default() };
            let met = std::mem::replace(&mut *lock(tray), failed);
            if let Some(waker) = met.waker {
                waker.wake();
            }
            return;
        }
    }
}

/// Writes everything, waiting for room. Ends with the last reader at the latest.
fn write_all(pipe: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(pipe, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EAGAIN) => {
                let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
                // A question that fails is asked again by the next write.
                let _ = poll(&mut asked, PollTimeout::NONE);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl AsyncWrite for Inlet {
    /// Takes bytes while there is room, also while others are being written: a failure is told to the
    /// next call.
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let pipe = this.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let (count, is_idle) = {
            let mut tray = lock(&this.tray);
            if let Some(error) = tray.failed.take() {
                return Poll::Ready(Err(error));
            }
            let count = bytes.len().min(CHUNK - tray.waiting.len());
            if count == 0 && !bytes.is_empty() {
                tray.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            tray.waiting.extend_from_slice(&bytes[..count]);
            (count, !std::mem::replace(&mut tray.is_busy, true))
        };
        if is_idle {
            let (pipe, tray) = (Arc::clone(pipe), Arc::clone(&this.tray));
            if let Err(error) = this.hand.start(move || drain(&pipe, &tray)) {
                *lock(&this.tray) = Tray::default();
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
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
    use nix::fcntl::OFlag;
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
        let mut inlet = Inlet::new(not_blocking(to));
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
        let mut inlet = Inlet::new(not_blocking(to));
        drop(from);
        let failed = async {
            inlet.write_all(b"x").await?;
            inlet.flush().await
        };
        assert_eq!(failed.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// Whoever feeds it has no more to say and only waits for an answer.
    #[tokio::test]
    async fn what_is_taken_while_something_else_is_written_goes_out_without_another_word() {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut inlet = Inlet::new(not_blocking(to));
        let first = vec![1; 4 * CHUNK];
        let mut read = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            let mut piece = vec![0; CHUNK];
            while got.last() != Some(&2) {
                match nix::unistd::read(&from, &mut piece).unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&piece[..count]),
                }
            }
            got.len()
        });
        inlet.write_all(&first).await.unwrap();
        inlet.write_all(&[2]).await.unwrap();
        let limit = std::time::Duration::from_secs(10);
        let got = tokio::time::timeout(limit, &mut read).await;
        drop(inlet);
        assert_eq!(got.expect("all of it arrives").unwrap(), first.len() + 1);
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
