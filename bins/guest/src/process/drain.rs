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

/// An output stream of a process that ends soon after the process.
pub struct Drained<R: AsyncRead + Send + Unpin + 'static> {
    /// Gone once it has ended.
    stream: Option<R>,
    exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    exited: bool,
    silence: Pin<Box<Sleep>>,
}

impl<R: AsyncRead + Send + Unpin + 'static> Drained<R> {
    /// Ends `stream` soon after `process`.
    pub fn new(stream: R, process: Child) -> Self {
        let exit = Box::pin(async move {
            process.wait().await;
        });
        Self::with_exit(stream, exit)
    }

    fn with_exit(stream: R, exit: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { stream: Some(stream), exit, exited: false, silence: Box::pin(sleep(SILENCE)) }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> AsyncRead for Drained<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(result) = Pin::new(stream).poll_read(context, buffer) {
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
        if this.silence.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        if let Some(stream) = this.stream.take() {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::oneshot;

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
