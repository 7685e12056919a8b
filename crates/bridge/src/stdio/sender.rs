//! The sending end of a stream: a ring shared by the one who writes the stream
//! and the connection that carries it away.
//!
//! The writer never notices a lost connection; it only waits while the ring is
//! full. At most one connection serves a ring at a time: a new one takes over,
//! and the older ends with [`StdioError::Superseded`].

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, PIECE, data_header};
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
        self.poll_offer(cx, bytes.is_empty(), |ring| ring.offer_copy(bytes))
    }

    fn poll_offer(
        &self,
        cx: &mut Context<'_>,
        is_empty: bool,
        offer: impl FnOnce(&mut OutputRing) -> Option<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        match offer(&mut state.ring) {
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(0) if !is_empty => {
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

    /// The same without a copy: the ring keeps the bytes where they are.
    ///
    /// # Errors
    /// As [`poll_write`](Self::poll_write).
    pub async fn put(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            poll_fn(|cx| self.poll_offer(cx, false, |ring| ring.offer(&mut bytes))).await?;
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

/// What a piece of the ring was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sent {
    /// This many bytes, which are written.
    Data(usize),
    /// None: bytes up to this offset were dropped.
    Gap(u64),
    /// The stream ends here.
    Eof,
    /// The reader wants no more.
    Stopped,
}

impl Lease<'_> {
    /// Writes the next bytes at `cursor` behind what `head` makes of their number, straight from the
    /// ring; waits while there are none. With `after_eof` the end of the stream is already known and
    /// waited beyond, so that only `Stopped` is left to come.
    ///
    /// Not cancel-safe: of what it began to write, no one can say how much is gone.
    pub(super) async fn send<W: AsyncWrite + Unpin, const N: usize>(
        &self,
        cursor: u64,
        after_eof: bool,
        write: &mut W,
        head: impl Fn(usize) -> [u8; N],
    ) -> Result<Sent, StdioError> {
        let lost = |source| StdioError::Lost { at: cursor, source };
        let mut rest = BytesMut::new();
        let sent = poll_fn(|cx| {
            let mut state = self.ring.lock();
            if state.lease != self.number {
                return Poll::Ready(Err(StdioError::Superseded));
            }
            match state.ring.piece_at(cursor, PIECE) {
                Piece::Data(bytes) => {
                    let head = head(bytes.len());
                    let parts = [&head[..], bytes];
                    let slices = parts.map(IoSlice::new);
                    let taken = ready!(Pin::new(&mut *write).poll_write_vectored(cx, &slices));
                    // The ring may let the rest go before there is room for it.
                    keep(&parts, taken.map_err(lost)?, &mut rest);
                    return Poll::Ready(Ok(Sent::Data(bytes.len())));
                }
                Piece::Gap(to) => return Poll::Ready(Ok(Sent::Gap(to))),
                Piece::Eof if !after_eof => return Poll::Ready(Ok(Sent::Eof)),
                Piece::Stopped => return Poll::Ready(Ok(Sent::Stopped)),
                Piece::Eof | Piece::Nothing => {}
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await?;
        write.write_all(&rest).await.map_err(lost)?;
        write.flush().await.map_err(lost)?;
        Ok(sent)
    }
}

/// Copies what follows the first `taken` bytes of `parts`.
fn keep(parts: &[&[u8]], mut taken: usize, rest: &mut BytesMut) {
    for part in parts {
        let skipped = taken.min(part.len());
        taken -= skipped;
        rest.extend_from_slice(&part[skipped..]);
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
    let mut hear = pin!(hear(ring, read));
    tokio::select! {
        biased;
        heard = &mut hear => heard,
        sent = send(&lease, write, from) => match sent {
            // Whoever wants no more closes the connection behind its word, which is still to be heard.
            Err(lost @ StdioError::Lost { .. }) => hear.await.map_err(|_| lost),
            sent => sent,
        },
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
        let head = |length| data_header(cursor, length);
        let (frame, next) = match lease.send(cursor, ended, &mut write, head).await? {
            Sent::Data(length) => {
                cursor += length as u64;
                continue;
            }
            Sent::Gap(to) => (Frame::Gap { from: cursor, to }, to),
            Sent::Eof => {
                ended = true;
                (Frame::Eof { offset: cursor }, cursor)
            }
            Sent::Stopped => return Ok(()),
        };
        out.clear();
        frame.encode(&mut out);
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
