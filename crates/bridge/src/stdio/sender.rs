//! The sending end of a stream: a ring shared by the one who writes the stream
//! and the connection that carries it away.
//!
//! The writer never notices a lost connection; it only waits while the ring is
//! full. At most one connection serves a ring at a time: a new one takes over,
//! and the older ends with [`StdioError::Superseded`].

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::frame::{DATA_MAX, Frame, HEADER_LEN, data_header};
use super::ring::{OutputRing, Piece, RingFault};
use super::{StdioError, WhenFull};

/// An [`OutputRing`] with a writer and a reader that wait for each other.
#[derive(Debug, Clone)]
pub struct SharedRing {
    state: Arc<Mutex<State>>,
    stopped: CancellationToken,
}

#[derive(Debug)]
struct State {
    ring: OutputRing,
    /// Number of the connection that may read; older ones are superseded.
    lease: u64,
    served: bool,
    writers: Vec<Waker>,
    reader: Option<Waker>,
}

impl State {
    fn wake_writers(&mut self) {
        self.writers.drain(..).for_each(Waker::wake);
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }
}

impl SharedRing {
    /// Shares a ring.
    pub fn new(ring: OutputRing) -> Self {
        let state = State { ring, lease: 0, served: false, writers: Vec::new(), reader: None };
        Self { state: Arc::new(Mutex::new(state)), stopped: CancellationToken::new() }
    }

    /// An empty ring of `capacity` bytes.
    pub fn with_capacity(capacity: usize, when_full: WhenFull) -> Self {
        Self::new(OutputRing::new(capacity, when_full))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads facts off the ring.
    pub fn inspect<T>(&self, look: impl FnOnce(&OutputRing) -> T) -> T {
        look(&self.lock().ring)
    }

    /// Hands bytes to the ring; ready with how many it took, at least one.
    ///
    /// # Errors
    /// `BrokenPipe` when the reader wants no more or the stream was finished.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        match state.ring.offer(bytes) {
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(0) if !bytes.is_empty() => {
                if !state.writers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.writers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            Some(taken) => {
                state.wake_reader();
                Poll::Ready(Ok(taken))
            }
        }
    }

    /// Hands all of `bytes` to the ring, waiting for room.
    ///
    /// # Errors
    /// As [`poll_write`](Self::poll_write).
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The writer ends the stream; what is kept still goes out.
    pub fn finish(&self) {
        let mut state = self.lock();
        state.ring.finish();
        state.wake_reader();
    }

    /// The reader wants no more: the writer gets `BrokenPipe` from now on.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.ring.stop();
        state.wake_writers();
        state.wake_reader();
        self.stopped.cancel();
    }

    /// Returns once the reader wants no more.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Whether a connection serves this ring now.
    pub fn is_served(&self) -> bool {
        self.lock().served
    }

    /// Frees the bytes before `offset`.
    ///
    /// # Errors
    /// [`RingFault`] when the offset was never written.
    pub fn acknowledge(&self, offset: u64) -> Result<(), RingFault> {
        let mut state = self.lock();
        state.ring.acknowledge(offset)?;
        state.wake_writers();
        Ok(())
    }

    /// Makes the caller the ring's reader; every earlier reader is superseded.
    pub(super) fn attach(&self) -> Lease<'_> {
        let mut state = self.lock();
        state.lease += 1;
        state.served = true;
        state.wake_reader();
        Lease { ring: self, number: state.lease }
    }
}

/// The right to read a ring, until somebody else attaches.
#[derive(Debug)]
pub(super) struct Lease<'a> {
    ring: &'a SharedRing,
    number: u64,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.ring.lock();
        if state.lease == self.number {
            state.served = false;
        }
    }
}

impl Lease<'_> {
    /// The next piece at `cursor`; waits while there is none. With `after_eof`
    /// the end of the stream is already known and waited beyond, so that only
    /// `Stopped` is left to come.
    pub(super) async fn piece(
        &self,
        cursor: u64,
        after_eof: bool,
        out: &mut BytesMut,
    ) -> Result<Piece, StdioError> {
        poll_fn(|cx| {
            let mut state = self.ring.lock();
            if state.lease != self.number {
                return Poll::Ready(Err(StdioError::Superseded));
            }
            let piece = state.ring.piece_at(cursor, DATA_MAX, out);
            let wait = match piece {
                Piece::Nothing => true,
                Piece::Eof => after_eof,
                Piece::Data(_) | Piece::Gap(_) | Piece::Stopped => false,
            };
            if wait {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(piece))
        })
        .await
    }
}

/// Writes the frame by which the dialling end says what a connection is for.
///
/// # Errors
/// What the connection says.
pub async fn open<S>(connection: &mut S, session: u64, port: u32) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    Frame::Open { session, port }.encode(&mut out);
    connection.write_all(&out).await?;
    connection.flush().await
}

/// Carries a ring's bytes over `connection` from the offset `from` on, and frees
/// them as the far end acknowledges them. Returns when the far end wants no more:
/// it then consumed the end of the stream, or its consumer is gone for good.
///
/// # Errors
/// The ring keeps everything that was not acknowledged, so after any error the
/// stream can be served again over another connection.
pub async fn serve_output<S>(ring: &SharedRing, connection: S, from: u64) -> Result<(), StdioError>
where
    S: AsyncRead + AsyncWrite,
{
    let lease = ring.attach();
    ring.acknowledge(from.max(ring.inspect(OutputRing::base)))?;
    let (read, write) = tokio::io::split(connection);
    // Neither loop is ever restarted, so it does no harm that they are not cancel-safe.
    tokio::select! {
        sent = send(&lease, write, from) => sent,
        heard = hear(ring, read) => heard,
    }
}

async fn send<W>(lease: &Lease<'_>, mut write: W, from: u64) -> Result<(), StdioError>
where
    W: AsyncWrite + Unpin,
{
    let mut cursor = from;
    let mut ended = false;
    let mut out = BytesMut::new();
    loop {
        out.clear();
        out.put_bytes(0, HEADER_LEN);
        let piece = lease.piece(cursor, ended, &mut out).await?;
        let next = match piece {
            Piece::Data(length) => {
                out[..HEADER_LEN].copy_from_slice(&data_header(cursor, length));
                cursor + length as u64
            }
            Piece::Gap(to) => {
                out.clear();
                Frame::Gap { from: cursor, to }.encode(&mut out);
                to
            }
            Piece::Eof => {
                out.clear();
                Frame::Eof { offset: cursor }.encode(&mut out);
                ended = true;
                cursor
            }
            Piece::Stopped => return Ok(()),
            Piece::Nothing => continue,
        };
        let lost = |source| StdioError::Lost { at: cursor, source };
        write.write_all(&out).await.map_err(lost)?;
        write.flush().await.map_err(lost)?;
        cursor = next;
    }
}

async fn hear<R>(ring: &SharedRing, mut read: R) -> Result<(), StdioError>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(256);
    loop {
        while let Some(frame) = Frame::decode(&mut buffer)? {
            match frame {
                Frame::Ack { offset } => ring.acknowledge(offset)?,
                Frame::Stop { offset } => {
                    ring.acknowledge(offset)?;
                    ring.stop();
                    return Ok(());
                }
                Frame::Open { .. } | Frame::Data { .. } | Frame::Eof { .. } | Frame::Gap { .. } => {
                    let at = ring.inspect(OutputRing::base);
                    return Err(StdioError::Unexpected { kind: frame.name(), at });
                }
            }
        }
        let lost = |source| {
            let at = ring.inspect(OutputRing::base);
            StdioError::Lost { at, source }
        };
        let read = read.read_buf(&mut buffer).await.map_err(lost)?;
        if read == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
