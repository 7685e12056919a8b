//! Output that ends.
//!
//! A pipe has no end while anyone holds its other side, and a process may leave children behind
//! that do. Its exit is told at once all the same; its output, so that a reader does not wait for
//! ever, is taken to be at its end when the process has exited and nothing came for a moment. What
//! the children still write is read and thrown away, so that writing does not kill them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
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

/// A stream of bytes as [`Drained`] takes it.
pub trait Output: Stream<Item = io::Result<Bytes>> + Rest + Send + Unpin + 'static {}

impl<T: Stream<Item = io::Result<Bytes>> + Rest + Send + Unpin + 'static> Output for T {}

/// An output stream of a process that ends soon after the process.
pub struct Drained<O: Output> {
    /// Gone once it has ended.
    stream: Option<O>,
    exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Since the process has exited: until the stream has been silent for long.
    silence: Option<Pin<Box<Sleep>>>,
    /// How often the stream was silent and yet not at rest.
    unrest: u32,
}

impl<O: Output> Drained<O> {
    /// Ends `stream` soon after `process`.
    pub fn new(stream: O, process: Child) -> Self {
        let exit = Box::pin(async move {
            process.wait().await;
        });
        Self::with_exit(stream, exit)
    }

    fn with_exit(stream: O, exit: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { stream: Some(stream), exit, silence: None, unrest: 0 }
    }
}

impl<O: Output> Stream for Drained<O> {
    type Item = io::Result<Bytes>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if let Poll::Ready(bytes) = Pin::new(&mut *stream).poll_next(context) {
            this.unrest = 0;
            if let Some(silence) = &mut this.silence {
                silence.as_mut().reset(Instant::now() + SILENCE);
            }
            return Poll::Ready(bytes);
        }
        let silence = match &mut this.silence {
            Some(silence) => silence,
            None => {
                ready!(this.exit.as_mut().poll(context));
                this.silence.insert(Box::pin(sleep(SILENCE)))
            }
        };
        while silence.as_mut().poll(context).is_ready() {
            if stream.is_at_rest() || this.unrest == AGAIN {
                // What is still to come is for nobody.
                if let Some(stream) = this.stream.take() {
                    discard(stream);
                }
                return Poll::Ready(None);
            }
            this.unrest += 1;
            silence.as_mut().reset(Instant::now() + SILENCE);
        }
        Poll::Pending
    }
}

/// Reads a stream nobody wants to its end.
pub fn discard(mut stream: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static) {
    // Ends when the last process that holds the other end does.
    tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::oneshot;
    use tokio_util::io::ReaderStream;

    /// One side of a stream, whose read may be under way until it is told otherwise.
    struct Reading(ReaderStream<DuplexStream>, Arc<AtomicBool>);

    impl Rest for Reading {
        fn is_at_rest(&self) -> bool {
            !self.1.load(Ordering::Relaxed)
        }
    }

    impl Stream for Reading {
        type Item = io::Result<Bytes>;

        fn poll_next(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<io::Result<Bytes>>> {
            Pin::new(&mut self.0).poll_next(context)
        }
    }

    fn stream() -> (Reading, DuplexStream) {
        let (ours, its) = duplex(64);
        (Reading(ReaderStream::new(ours), Arc::default()), its)
    }

    async fn text(stream: &mut Drained<Reading>) -> Vec<u8> {
        let pieces: Vec<Bytes> = stream.map(Result::unwrap).collect().await;
        pieces.concat()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_waits_for_its_turn_is_no_silence_but_one_that_hangs_is() {
        let (ours, mut its) = stream();
        ours.1.store(true, Ordering::Relaxed);
        let mut stream = Drained::with_exit(ours, Box::pin(async {}));
        let late = async {
            tokio::time::sleep(SILENCE * 5).await;
            its.write_all(b"late").await.unwrap();
            its
        };
        let (word, _its) = tokio::join!(stream.next(), late);
        assert_eq!(word.unwrap().unwrap(), "late");
        let began = Instant::now();
        assert!(stream.next().await.is_none(), "it hangs for good");
        assert!(began.elapsed() >= SILENCE * AGAIN);
    }

    #[tokio::test(start_paused = true)]
    async fn output_ends_after_the_exit_though_someone_holds_the_pipe() {
        let (ours, mut its) = stream();
        let (exit, exited) = oneshot::channel::<()>();
        let exited = Box::pin(async move { drop(exited.await) });
        let mut stream = Drained::with_exit(ours, exited);
        its.write_all(b"last words").await.unwrap();
        exit.send(()).unwrap();
        assert_eq!(text(&mut stream).await, b"last words");
        // The one who holds it can go on writing, more than the pipe takes.
        its.write_all(&[0; 1000]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn output_does_not_end_while_the_process_lives() {
        let (ours, mut its) = stream();
        let mut stream = Drained::with_exit(ours, Box::pin(std::future::pending()));
        let silent = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        assert!(silent.is_err());
        its.write_all(b"x").await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "x");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_in_the_pipe_comes_first_however_late_it_is_read() {
        let (ours, mut its) = stream();
        let mut stream = Drained::with_exit(ours, Box::pin(async {}));
        its.write_all(b"abc").await.unwrap();
        tokio::time::sleep(SILENCE * 10).await;
        assert_eq!(text(&mut stream).await, b"abc");
    }
}
