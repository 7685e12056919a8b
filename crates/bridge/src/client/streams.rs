//! The standard streams of a process, as the host's programs use them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::task::AbortHandle;

use super::io_channel::IoChannel;
use crate::stdio::{OutputRing, Receiver, SharedRing};

/// Bytes of a stream read at once.
const CHUNK: usize = 64 * 1024;

/// The streams of a process; each is there when it was asked for, and once.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Where to write the process's standard input.
    pub stdin: Option<StdinWriter>,
    /// Its standard output, or its terminal's.
    pub stdout: Option<StdoutReader>,
    /// Its standard error.
    pub stderr: Option<StdoutReader>,
}

/// Reads one output stream of a process.
///
/// With a guest that keeps sessions a lost connection is an error, never an end of
/// file, and [`offset`](Self::offset) tells where a resumed stream must go on. What
/// was read counts as consumed, and is acknowledged, when the next read begins.
/// Dropping the reader says nothing to the process; [`stop`](Self::stop) does.
#[derive(Debug)]
pub struct StdoutReader {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Bare { channel: IoChannel, offset: u64 },
    Framed(Box<Receiver<BufReader<IoChannel>>>),
}

impl StdoutReader {
    pub(super) fn bare(channel: IoChannel) -> Self {
        Self { source: Source::Bare { channel, offset: 0 } }
    }

    pub(super) fn framed(channel: IoChannel, from: u64, lost: u64) -> Self {
        let channel = BufReader::with_capacity(CHUNK, channel);
        Self { source: Source::Framed(Box::new(Receiver::resumed(channel, from, lost))) }
    }

    /// How many bytes of the stream came before the next one.
    pub fn offset(&self) -> u64 {
        match &self.source {
            Source::Bare { offset, .. } => *offset,
            Source::Framed(receiver) => receiver.offset(),
        }
    }

    /// How many bytes are missing because the guest had dropped them.
    pub fn lost(&self) -> u64 {
        match &self.source {
            Source::Bare { .. } => 0,
            Source::Framed(receiver) => receiver.lost(),
        }
    }

    /// Says that nobody will read the rest: the process gets a broken pipe when it
    /// writes on.
    ///
    /// # Errors
    /// When the connection is lost already.
    pub async fn stop(self) -> io::Result<()> {
        match self.source {
            // Closing is all a plain guest understands.
            Source::Bare { channel, .. } => {
                drop(channel);
                Ok(())
            }
            Source::Framed(receiver) => receiver.stop().await,
        }
    }
}

impl AsyncRead for StdoutReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.source {
            Source::Bare { channel, offset } => {
                let before = into.filled().len();
                let polled = Pin::new(channel).poll_read(cx, into);
                *offset += (into.filled().len() - before) as u64;
                polled
            }
            Source::Framed(receiver) => Pin::new(receiver.as_mut()).poll_read(cx, into),
        }
    }
}

/// Writes a process's standard input. `shutdown` ends the stream; dropping the
/// writer does not.
///
/// Writes go into a ring of 1 MiB that a task carries to the guest; they wait when
/// it is full, and fail with `BrokenPipe` when the process takes no more. The
/// writer stays good when its process is resumed with
/// [`StdinResume::Ring`](super::StdinResume::Ring).
#[derive(Debug, Clone)]
pub struct StdinWriter {
    ring: SharedRing,
}

impl StdinWriter {
    pub(super) fn new(ring: SharedRing) -> Self {
        Self { ring }
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.ring.inspect(OutputRing::end)
    }

    /// Whether the process has all of it, its end included, or takes no more.
    pub fn is_over(&self) -> bool {
        self.ring.inspect(OutputRing::is_stopped)
    }

    /// How many of them the process took.
    pub fn taken(&self) -> u64 {
        self.ring.inspect(OutputRing::base)
    }
}

impl AsyncWrite for StdinWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ring.poll_write(cx, bytes)
    }

    /// Ready at once: the bytes are on their way, and may stay there as long as the
    /// process does not read.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ring.finish();
        Poll::Ready(Ok(()))
    }
}

/// The host's end of a stdin: the ring and the task that carries it.
#[derive(Debug, Clone)]
pub(super) struct StdinCarrier {
    pub(super) ring: SharedRing,
    task: Arc<EndTask>,
}

#[derive(Debug)]
struct EndTask(AbortHandle);

impl Drop for EndTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StdinCarrier {
    pub(super) fn new(ring: SharedRing, task: AbortHandle) -> Self {
        Self { ring, task: Arc::new(EndTask(task)) }
    }

    /// Whether the task carries on, or has done all there was to do.
    pub(super) fn is_well(&self) -> bool {
        !self.task.0.is_finished() || self.ring.inspect(OutputRing::is_stopped)
    }

    /// Stops carrying; the ring keeps what was not taken.
    pub(super) fn detach(&self) -> SharedRing {
        self.task.0.abort();
        self.ring.clone()
    }
}
