//! The end that a workload reads from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::AsyncWrite;

use super::{CHUNK, lock, widen};
use crate::process::hand::Hand;

/// So much is given to the thread at once even if there is more to come.
const ENOUGH: usize = CHUNK / 2;

/// What a workload reads. What was taken is written before it is shut, whether anyone asks again or not.
#[derive(Debug)]
pub struct Inlet {
    pipe: Option<Arc<OwnedFd>>,
    tray: Arc<Mutex<Tray>>,
    hand: Arc<Mutex<Hand>>,
}

/// What an inlet and its thread share.
#[derive(Debug, Default)]
struct Tray {
    /// Taken, and not yet with the thread.
    waiting: Vec<u8>,
    /// The thread is at it, and looks here again before it stops; or is about to be told.
    is_busy: bool,
    /// What the thread met, for the next caller.
    failed: Option<io::Error>,
    /// Who waits for room or for the end of the work.
    waker: Option<Waker>,
}

impl Inlet {
    /// Takes over the writing end of a pipe, which must not block.
    pub fn new(pipe: OwnedFd) -> Self {
        widen(&pipe);
        Self { pipe: Some(Arc::new(pipe)), tray: Arc::default(), hand: Arc::default() }
    }

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
            // It ends as soon as nothing more comes, and what was taken is written without us.
            tokio::spawn(gather(Arc::clone(pipe), Arc::clone(&this.tray), Arc::clone(&this.hand)));
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

/// Tells the thread once no more is added while everyone else has a turn: going to it and back for
/// each piece costs more than what it does with one.
async fn gather(pipe: Arc<OwnedFd>, tray: Arc<Mutex<Tray>>, hand: Arc<Mutex<Hand>>) {
    let mut seen = 0;
    loop {
        let length = lock(&tray).waiting.len();
        if length == seen || length >= ENOUGH {
            break;
        }
        seen = length;
        tokio::task::yield_now().await;
    }
    let its = Arc::clone(&tray);
    let started = lock(&hand).start(move || drain(&pipe, &its));
    if let Err(error) = started {
        fail(&tray, error);
    }
}

/// For the next caller; what was taken is lost.
fn fail(tray: &Mutex<Tray>, error: io::Error) {
    let failed = Tray { failed: Some(error), ..Tray::default() };
    let met = std::mem::replace(&mut *lock(tray), failed);
    if let Some(waker) = met.waker {
        waker.wake();
    }
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
            fail(tray, error);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::tests::not_blocking;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use tokio::io::AsyncWriteExt;

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
}
