//! The handle of one stream.

use super::Mux;
use super::frame::{Frame, StreamId};
use super::piece::Piece;
use super::state::{Receiving, Sending, State, register, reset};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

/// A connection through the channel: reads and writes as a socket does.
///
/// Shutting it down ends our direction only; the peer reads everything and then end of file, and
/// may go on sending. Dropping it before shutdown is an abort: the peer sees `ConnectionReset`. So is
/// the end of the session. An end of file always means that the peer has said so.
pub struct ChannelStream {
    mux: Arc<Mux>,
    id: StreamId,
    /// Being lent to a buffered reader.
    lent: Piece,
}

impl fmt::Debug for ChannelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChannelStream").field(&self.id.0).finish()
    }
}

impl ChannelStream {
    pub(super) fn new(mux: Arc<Mux>, id: StreamId) -> Self {
        ChannelStream { mux, id, lent: Piece::default() }
    }

    /// The number of the stream, unique in its session.
    pub(crate) fn number(&self) -> u32 {
        self.id.0
    }

    /// Tells the peer that its dial has been answered.
    pub(crate) fn accept(&self) {
        let mut state = self.mux.lock();
        if state.ended {
            return;
        }
        state.out.push_urgent(Frame::Accept(self.id));
        state.wake_driver();
    }

    /// Waits until the peer has answered our dial.
    ///
    /// # Errors
    /// `ConnectionRefused` when the peer refused, or the session ended first.
    pub(crate) async fn accepted(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let mut state = self.mux.lock();
            let Some(stream) = state.streams.get_mut(&self.id) else {
                return Poll::Ready(Err(reset()));
            };
            if stream.accepted {
                return Poll::Ready(Ok(()));
            }
            if stream.broken {
                return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
            }
            register(&mut stream.writer, cx);
            Poll::Pending
        })
        .await
    }

    /// Whether the stream has failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.mux.lock().streams.get(&self.id).is_none_or(|stream| stream.broken)
    }

    /// Whether the peer has said that it reads no more. What it sent before still arrives.
    pub(crate) fn is_stopped(&self) -> bool {
        let state = self.mux.lock();
        state
            .streams
            .get(&self.id)
            .is_some_and(|stream| !stream.broken && stream.sending == Sending::Stopped)
    }

    /// How many bytes [`ChannelStream::send`] may take now. The task is woken as well when the
    /// stream breaks, even after this was ready.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.mux.lock().poll_room(self.id, cx)
    }

    /// Sends bytes for which there is room.
    pub(crate) fn send(&self, data: &[u8]) {
        self.mux.lock().send(self.id, &[data]);
    }

    /// Ends our direction.
    pub(crate) fn shut(&self) -> io::Result<()> {
        self.mux.lock().shut(self.id)
    }

    /// Takes the first of what has arrived, without a copy; nothing at the end of the stream. The peer gets
    /// room again by [`ChannelStream::release`].
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<io::Result<Piece>> {
        let mut state = self.mux.lock();
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return Poll::Ready(Err(reset()));
        };
        if stream.broken {
            return Poll::Ready(Err(reset()));
        }
        if stream.inflow.is_empty() && stream.receiving == Receiving::Open {
            register(&mut stream.reader, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(stream.inflow.take()))
    }

    /// Takes back what [`ChannelStream::poll_take`] gave, for its memory.
    pub(crate) fn put_back(&self, piece: Piece) {
        self.mux.lock().pool.keep(piece);
    }

    /// Says that `n` taken bytes have gone where they belong.
    pub(crate) fn release(&self, n: usize) {
        let mut state = self.mux.lock();
        if let Some(stream) = state.streams.get_mut(&self.id) {
            stream.inflow.release(n);
        }
        state.consumed(self.id);
    }

    fn poll_copy(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.mux.lock();
        let State { streams, pool, .. } = &mut *state;
        let Some(stream) = streams.get_mut(&self.id) else {
            return Poll::Ready(Err(reset()));
        };
        if stream.broken {
            return Poll::Ready(Err(reset()));
        }
        if stream.inflow.is_empty() {
            return match stream.receiving {
                Receiving::Ended => Poll::Ready(Ok(())),
                Receiving::Open => {
                    register(&mut stream.reader, cx);
                    Poll::Pending
                }
            };
        }
        stream.inflow.read(into, pool);
        state.consumed(self.id);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ChannelStream {
    fn drop(&mut self) {
        self.mux.lock().forget(self.id);
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.lent.is_empty() {
            return self.poll_copy(cx, buf);
        }
        let (first, _) = self.lent.slices();
        let length = first.len().min(buf.remaining());
        buf.put_slice(&first[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

/// The bytes where they were received. They count as read when they are consumed.
impl AsyncBufRead for ChannelStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.lent.is_empty() {
            this.lent = ready!(this.poll_take(cx))?;
        }
        Poll::Ready(Ok(this.lent.slices().0))
    }

    fn consume(self: Pin<&mut Self>, length: usize) {
        let this = self.get_mut();
        let length = length.min(this.lent.len());
        this.lent.advance(length);
        this.release(length);
        if this.lent.is_empty() {
            let spent = std::mem::take(&mut this.lent);
            this.put_back(spent);
        }
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.mux.lock();
        let room = ready!(state.poll_room(self.id, cx))?;
        let n = room.min(buf.len());
        state.send(self.id, &[&buf[..n]]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if parts.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.mux.lock();
        let room = ready!(state.poll_room(self.id, cx))?;
        let count = room.min(parts.iter().map(|part| part.len()).sum());
        let mut left = count;
        let sent = parts.iter().map(|part| {
            let n = left.min(part.len());
            left -= n;
            &part[..n]
        });
        state.send(self.id, &sent.collect::<Vec<_>>());
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is held back: what was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shut())
    }
}
