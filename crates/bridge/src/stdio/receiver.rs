//! The receiving end of a stream: frames in, bytes out, acknowledgements back.
//!
//! It has no task of its own. A byte counts as consumed once the reader comes back
//! for more: only then is it sure that the caller has done with the previous bytes
//! what it wanted to do. It is acknowledged with many others, or a moment later, to
//! a reader that waits.
//!
//! ```text
//!   Open --Eof--> Saying (Stop on its way out) --written--> Done
//!     '--fault--> Failed (every further read fails)
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::StdioError;
use super::frame::{Frame, HEADER_LEN, Head};

/// Consumed bytes are acknowledged at the latest when this many are due.
const ACK_EVERY: u64 = 384 * 1024;

/// Fewer are acknowledged this much later. At once would be after each piece of a flood: each word from
/// an emulated guest to its host, or back, costs as much as copying 20 KiB.
const PAUSE: Duration = Duration::from_millis(5);

/// Reads one stream off a connection, as an [`AsyncRead`] that gives every byte
/// once and in order, and an error, never an end of file, for a lost connection.
///
/// The bytes of a stream are lent from where the connection has them. Only headers and small frames
/// are gathered.
#[derive(Debug)]
pub struct Receiver<S> {
    connection: S,
    /// What there is of a header or a frame without data.
    inbound: BytesMut,
    /// Bytes of a `Data` frame that are still to be read.
    data: usize,
    /// How many of these were handed out before.
    known: usize,
    outbound: BytesMut,
    /// Offset of the next byte to hand out.
    offset: u64,
    acknowledged: u64,
    lost: u64,
    /// When it ends, what is due is acknowledged.
    pause: Option<Pin<Box<Sleep>>>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Saying,
    Done,
    Failed,
}

impl<S: AsyncBufRead + AsyncWrite + Unpin> Receiver<S> {
    /// A receiver whose next byte has the offset `from`.
    pub fn new(connection: S, from: u64) -> Self {
        Self {
            connection,
            inbound: BytesMut::new(),
            data: 0,
            known: 0,
            outbound: BytesMut::new(),
            offset: from,
            acknowledged: from,
            lost: 0,
            pause: None,
            phase: Phase::Open,
        }
    }

    /// A receiver that goes on at `from`, after `lost` bytes the sender had dropped.
    pub fn resumed(connection: S, from: u64, lost: u64) -> Self {
        Self { lost, ..Self::new(connection, from) }
    }

    /// Offset after the last byte that was handed out: where a successor goes on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes the sender had to drop before we could read them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The connection, for a look at it; reading from it breaks the stream.
    pub fn connection(&self) -> &S {
        &self.connection
    }

    /// Says that the rest of the stream is not wanted, and closes the connection.
    ///
    /// # Errors
    /// What the connection says; the sender then keeps the rest for a successor.
    pub async fn stop(mut self) -> io::Result<()> {
        if self.phase == Phase::Open {
            self.say_stop();
        }
        self.connection.write_all_buf(&mut self.outbound).await?;
        self.connection.shutdown().await
    }

    fn say_stop(&mut self) {
        let offset = self.offset;
        Frame::Stop { offset }.encode(&mut self.outbound);
        self.phase = Phase::Saying;
    }

    /// Writes as much of the outbound bytes as the connection takes now.
    fn poll_say(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let written = ready!(Pin::new(&mut self.connection).poll_write(cx, &self.outbound))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.advance(written);
        }
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    /// Queues an acknowledgement of all that was handed out, unless the last one
    /// is still on its way out.
    fn acknowledge(&mut self) {
        if self.offset == self.acknowledged || !self.outbound.is_empty() {
            return;
        }
        let offset = self.offset;
        Frame::Ack { offset }.encode(&mut self.outbound);
        self.acknowledged = self.offset;
    }

    /// Obeys the frame whose bytes are gathered. How many bytes of it are missing; none if it was whole.
    fn take_frame(&mut self) -> Result<usize, StdioError> {
        let Some(header) = self.inbound.first_chunk() else {
            return Ok(HEADER_LEN - self.inbound.len());
        };
        let head = Head::read(header)?;
        let at = self.offset;
        if head.is_data() {
            // A sender that was resumed may repeat what we already have: then it
            // has not heard of our acknowledgement, and waits for it.
            let unexpected = StdioError::Unexpected { kind: "Data", at };
            let known = at.checked_sub(head.offset).ok_or(unexpected)?;
            self.acknowledged = self.acknowledged.min(head.offset);
            self.known = usize::try_from(known).unwrap_or(usize::MAX).min(head.payload);
            self.data = head.payload;
            self.inbound.clear();
            return Ok(0);
        }
        let missing = (HEADER_LEN + head.payload).saturating_sub(self.inbound.len());
        let Some(frame) = Frame::decode(&mut self.inbound)? else { return Ok(missing) };
        let unexpected = StdioError::Unexpected { kind: frame.name(), at };
        match frame {
            Frame::Gap { from, to } => {
                if from > at || to < from {
                    return Err(unexpected);
                }
                self.lost = self.lost.saturating_add(to.saturating_sub(at));
                self.offset = at.max(to);
                tracing::warn!(from = at, to, "output was dropped before it could be read");
            }
            Frame::Eof { offset } if offset == at => self.say_stop(),
            Frame::Eof { .. }
            | Frame::Open { .. }
            | Frame::Data { .. }
            | Frame::Ack { .. }
            | Frame::Stop { .. } => return Err(unexpected),
        }
        Ok(0)
    }

    /// Until there is data to hand out, or the stream is done.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(self.poll_next(cx));
        if result.is_err() {
            self.phase = Phase::Failed;
        }
        Poll::Ready(result.map_err(io::Error::from))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdioError>> {
        if self.offset - self.acknowledged >= ACK_EVERY {
            self.acknowledge();
        }
        loop {
            match self.phase {
                Phase::Open => {}
                Phase::Saying => {
                    // The stream is whole; that the sender cannot be told any more is its loss.
                    // Only a connection that was shut down delivers what was written last.
                    let _ = ready!(self.poll_say(cx));
                    let _ = ready!(Pin::new(&mut self.connection).poll_shutdown(cx));
                    self.phase = Phase::Done;
                    continue;
                }
                Phase::Done => return Poll::Ready(Ok(())),
                Phase::Failed => {
                    return Poll::Ready(Err(self.lost_by(io::ErrorKind::NotConnected)));
                }
            }
            // Of a header or a small frame, or of what was handed out before; none of new bytes.
            let wanted = match self.data {
                0 => match self.take_frame()? {
                    0 => continue,
                    missing => missing,
                },
                _ => self.known,
            };
            let at = self.offset;
            let there = match Pin::new(&mut self.connection).poll_fill_buf(cx) {
                Poll::Ready(Ok([])) => {
                    return Poll::Ready(Err(self.lost_by(io::ErrorKind::UnexpectedEof)));
                }
                Poll::Ready(Ok(there)) => there,
                Poll::Ready(Err(source)) => {
                    return Poll::Ready(Err(StdioError::Lost { at, source }));
                }
                Poll::Pending => {
                    self.poll_pause(cx);
                    self.poll_acknowledge(cx);
                    return Poll::Pending;
                }
            };
            if wanted == 0 {
                self.poll_acknowledge(cx);
                return Poll::Ready(Ok(()));
            }
            let count = there.len().min(wanted);
            if self.data > 0 {
                self.known -= count;
                self.data -= count;
            } else {
                self.inbound.extend_from_slice(&there[..count]);
            }
            Pin::new(&mut self.connection).consume(count);
        }
    }

    /// Acknowledges what is due once nothing has come for a while, or had not when the last pause ended.
    fn poll_pause(&mut self, cx: &mut Context<'_>) {
        if self.offset == self.acknowledged {
            return;
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
        if pause.as_mut().poll(cx).is_ready() {
            self.pause = None;
            self.acknowledge();
        }
    }

    /// Lets an acknowledgement out if the connection takes it now. That it does
    /// not, or has broken, is for the reading side to find out.
    fn poll_acknowledge(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(_)) = self.poll_say(cx) {
            self.outbound.clear();
        }
    }

    fn lost_by(&self, kind: io::ErrorKind) -> StdioError {
        StdioError::Lost { at: self.offset, source: kind.into() }
    }
}

impl<S: AsyncBufRead + AsyncWrite + Unpin> AsyncRead for Receiver<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let there = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = there.len().min(into.remaining());
        into.put_slice(&there[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

/// The bytes where the connection has them.
impl<S: AsyncBufRead + AsyncWrite + Unpin> AsyncBufRead for Receiver<S> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_data(cx))?;
        if this.data == 0 {
            return Poll::Ready(Ok(&[]));
        }
        let there = ready!(Pin::new(&mut this.connection).poll_fill_buf(cx))?;
        Poll::Ready(Ok(&there[..there.len().min(this.data)]))
    }

    fn consume(self: Pin<&mut Self>, length: usize) {
        let this = self.get_mut();
        let length = length.min(this.data);
        Pin::new(&mut this.connection).consume(length);
        this.data -= length;
        this.offset += length as u64;
    }
}
