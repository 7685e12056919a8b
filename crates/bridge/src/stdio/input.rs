//! The guest's end of standard input: what the process took, and what feeds it.
//!
//! [`Input`] belongs to the process and outlives connections. It alone knows how
//! many bytes the process took, so a connection cut in the middle of a write
//! leaves an exact offset behind for the next one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt,
};
use tokio_util::sync::CancellationToken;

use super::StdioError;
use super::receiver::Receiver;

/// The writing end of a process's standard input.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Bytes given to the process in one go.
const CHUNK: usize = 64 * 1024;

/// A process's standard input, as the guest holds it.
pub struct Input {
    state: Mutex<State>,
    closed: CancellationToken,
}

struct State {
    /// `None` once the stream has ended or the process is gone.
    sink: Option<Sink>,
    taken: u64,
    lease: u64,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("taken", &self.taken())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// How serving an input came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// The host ended the stream and the process got all of it.
    Eof,
    /// The process wants no more, or is gone.
    Refused,
}

impl Input {
    /// Feeds `sink`, which gets `shutdown` and is then dropped when the stream ends.
    pub fn new(sink: Sink) -> Self {
        let state = State { sink: Some(sink), taken: 0, lease: 0 };
        Self { state: Mutex::new(state), closed: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes the process took so far.
    pub fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Whether the process gets no more: the stream ended or the process did.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Closes the sink at once. For the end of the process.
    pub fn close(&self) {
        self.lock().sink = None;
        self.closed.cancel();
    }

    fn attach(&self) -> u64 {
        let mut state = self.lock();
        state.lease += 1;
        state.lease
    }

    /// Gives bytes to the process, and counts them in the same breath.
    fn poll_give(
        &self,
        cx: &mut Context<'_>,
        lease: u64,
        bytes: &[u8],
    ) -> Poll<Result<usize, Refusal>> {
        let mut state = self.lock();
        if state.lease != lease {
            return Poll::Ready(Err(Refusal::Superseded));
        }
        let Some(sink) = &mut state.sink else {
            return Poll::Ready(Err(Refusal::Closed));
        };
        match Pin::new(sink).poll_write(cx, bytes) {
            Poll::Ready(Ok(count)) if count > 0 => {
                state.taken += count as u64;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Ok(_) | Err(_)) => {
                state.sink = None;
                Poll::Ready(Err(Refusal::Closed))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Gives all of `bytes`; waits as long as the process does not read.
    async fn give(&self, lease: u64, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let count = tokio::select! {
                count = poll_fn(|cx| self.poll_give(cx, lease, bytes)) => count?,
                () = self.closed.cancelled() => return Err(Refusal::Closed),
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Ends the stream for the process.
    async fn end(&self) {
        let sink = self.lock().sink.take();
        if let Some(mut sink) = sink {
            // A process that is gone cannot be told; nothing is lost by that.
            let _ = sink.shutdown().await;
        }
        self.closed.cancel();
    }
}

enum Refusal {
    Superseded,
    Closed,
}

/// Feeds a process from a connection with frames, from [`Input::taken`] on.
///
/// # Errors
/// When the connection is lost, or another one serves this input now; the input
/// stays open for a successor.
pub async fn serve_input<S>(input: &Input, connection: S) -> Result<InputEnd, StdioError>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    let lease = input.attach();
    let mut receiver = Receiver::new(connection, input.taken());
    loop {
        let bytes = tokio::select! {
            bytes = receiver.fill_buf() => bytes,
            () = input.closed.cancelled() => break,
        };
        let bytes = bytes.map_err(|source| lost(input, source))?;
        if bytes.is_empty() {
            input.end().await;
            return Ok(InputEnd::Eof);
        }
        match input.give(lease, bytes).await {
            Ok(()) => {
                let length = bytes.len();
                receiver.consume(length);
            }
            Err(Refusal::Superseded) => return Err(StdioError::Superseded),
            Err(Refusal::Closed) => break,
        }
    }
    input.close();
    // The host learns that its writes are in vain; if it cannot be told, its
    // next session will see that the input is closed.
    let _ = receiver.stop().await;
    Ok(InputEnd::Refused)
}

/// Feeds a process from a connection of bare bytes, whose end is the stream's.
///
/// # Errors
/// When the connection breaks; the input is closed then.
pub async fn serve_input_raw<S>(input: &Input, mut connection: S) -> Result<InputEnd, StdioError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let lease = input.attach();
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            count = connection.read(&mut buffer) => count,
            () = input.closed.cancelled() => return Ok(InputEnd::Refused),
        };
        match count {
            Ok(0) => {
                input.end().await;
                return Ok(InputEnd::Eof);
            }
            Ok(count) => match input.give(lease, &buffer[..count]).await {
                Ok(()) => {}
                Err(Refusal::Superseded) => return Err(StdioError::Superseded),
                Err(Refusal::Closed) => {
                    input.close();
                    return Ok(InputEnd::Refused);
                }
            },
            Err(source) => {
                input.close();
                return Err(lost(input, source));
            }
        }
    }
}

fn lost(input: &Input, source: io::Error) -> StdioError {
    let at = input.taken();
    StdioError::Lost { at, source }
}
