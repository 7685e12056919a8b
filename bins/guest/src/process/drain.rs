//! Output that ends.
//!
//! A pipe has no end while anyone holds its other side, and a process may leave children behind
//! that do. Its exit is told at once all the same; its output, so that a reader does not wait for
//! ever, is taken to be at its end when the process has exited and nothing came for a moment. What
//! the children still write is read and thrown away, so that writing does not kill them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::reaper::Child;

/// How long an exited process's stream must be silent to count as ended.
const SILENCE: Duration = Duration::from_millis(500);

/// How often a stream that is not at rest is given as long again. A read that still hangs then waits
/// for somebody who holds the pipe, not for its turn on a busy processor.
const AGAIN: u32 = 20;

/// A stream that knows whether silence means that there is nothing.
pub trait Rest {
    /// Whether nothing is there to be read and no read is under way.
    fn is_at_rest(&self) -> bool;
}

/// An output stream of a process that ends soon after the process.
pub struct Drained<R: AsyncRead + Rest + Send + Unpin + 'static> {
    /// Gone once it has ended.
    stream: Option<R>,
    exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    exited: bool,
    silence: Pin<Box<Sleep>>,
    /// How often the stream was silent and yet not at rest.
    unrest: u32,
}

impl<R: AsyncRead + Rest + Send + Unpin + 'static> Drained<R> {
    /// Ends `stream` soon after `process`.
    pub fn new(stream: R, process: Child) -> Self {
        let exit = Box::pin(async move {
            process.wait().await;
        });
        Self::with_exit(stream, exit)
    }

    fn with_exit(stream: R, exit: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        let silence = Box::pin(sleep(SILENCE));
        Self { stream: Some(stream), exit, exited: false, silence, unrest: 0 }
    }
}

impl<R: AsyncRead + Rest + Send + Unpin + 'static> AsyncRead for Drained<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(result) = Pin::new(&mut *stream).poll_read(context, buffer) {
            this.unrest = 0;
            this.silence.as_mut().reset(Instant::now() + SILENCE);
            return Poll::Ready(result);
        }
        if !this.exited {
            if this.exit.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.exited = true;
            this.silence.as_mut().reset(Instant::now() + SILENCE);
        }
        while this.silence.as_mut().poll(context).is_ready() {
            if stream.is_at_rest() || this.unrest == AGAIN {
                return this.end();
            }
            this.unrest += 1;
            this.silence.as_mut().reset(Instant::now() + SILENCE);
        }
        Poll::Pending
    }
}

impl<R: AsyncRead + Rest + Send + Unpin + 'static> Drained<R> {
    /// What is still to come is for nobody.
    fn end(&mut self) -> Poll<io::Result<()>> {
        if let Some(stream) = self.stream.take() {
            discard(stream);
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads a stream nobody wants to its end.
pub fn discard(mut stream: impl AsyncRead + Send + Unpin + 'static) {
    // Ends when the last process that holds the other end does.
    tokio::spawn(async move { drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::oneshot;

    impl Rest for DuplexStream {
        fn is_at_rest(&self) -> bool {
            true
        }
    }

    /// A stream whose read is under way until it is told otherwise.
    struct Reading(DuplexStream, Arc<AtomicBool>);

    impl Rest for Reading {
        fn is_at_rest(&self) -> bool {
            !self.1.load(Ordering::Relaxed)
        }
    }

    impl AsyncRead for Reading {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_waits_for_its_turn_is_no_silence_but_one_that_hangs_is() {
        let (ours, mut its) = duplex(64);
        let under_way = Arc::new(AtomicBool::new(true));
        let stream = Reading(ours, Arc::clone(&under_way));
        let mut stream = Drained::with_exit(stream, Box::pin(async {}));
        let late = async {
            tokio::time::sleep(SILENCE * 5).await;
            its.write_all(b"late").await.unwrap();
            its
        };
        let mut word = [0; 4];
        let (read, _its) = tokio::join!(stream.read_exact(&mut word), late);
        assert_eq!((read.unwrap(), &word), (4, b"late"));
        let began = Instant::now();
        assert_eq!(stream.read(&mut word).await.unwrap(), 0, "it hangs for good");
        assert!(began.elapsed() >= SILENCE * AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn output_ends_after_the_exit_though_someone_holds_the_pipe() {
        let (ours, mut its) = duplex(64);
        let (exit, exited) = oneshot::channel::<()>();
        let exited = Box::pin(async move { drop(exited.await) });
        let mut stream = Drained::with_exit(ours, exited);
        its.write_all(b"last words").await.unwrap();
        exit.send(()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
        // The one who holds it can go on writing, more than the pipe takes.
        its.write_all(&[0; 1000]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn output_does_not_end_while_the_process_lives() {
        let (ours, mut its) = duplex(64);
        let mut stream = Drained::with_exit(ours, Box::pin(std::future::pending()));
        let mut byte = [0];
        let silent = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut byte)).await;
        assert!(silent.is_err());
        its.write_all(b"x").await.unwrap();
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_in_the_pipe_comes_first_however_late_it_is_read() {
        let (ours, mut its) = duplex(64);
        let mut stream = Drained::with_exit(ours, Box::pin(async {}));
        its.write_all(b"abc").await.unwrap();
        tokio::time::sleep(SILENCE * 10).await;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"abc");
    }
}
