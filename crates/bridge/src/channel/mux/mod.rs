//! Many streams in one session.
//!
//! Each stream is an ordered pair of byte directions with its own window, end and failure:
//!
//! ```text
//!            write, window permitting                 shutdown            dropped with an end unread
//! open ────────────────────────────────► open ──────────────► ended ──────────────► STOP: "I read
//!   │                                      │     EOF                                  no more"
//!   │ dropped before shutdown              │
//!   └──────────────── RESET ◄──────────────┘   both ends see an error, never an end of file
//! ```
//!
//! A [`Mux`] is the state of one session and does no input or output: [`Mux::receive`] takes
//! payloads from the link, [`Mux::poll_next`] gives it records. When the session ends, every stream
//! of it fails with `ConnectionReset`.
//!
//! Nothing here grows without bound, whatever the peer does: streams are counted, windows come
//! out of a pool, and a peer that makes us queue refusals without reading them loses its session.

pub(crate) mod frame;
pub(crate) mod inflow;
pub(crate) mod outflow;
mod piece;
mod places;
mod queue;
mod state;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use piece::Piece;
pub(crate) use places::Area;
pub use stream::ChannelStream;

use frame::{Frame, FrameError, StreamId};
use outflow::{Outflow, Outgoing, Side};
use state::{State, Stream, register, reset};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use thiserror::Error;
use tokio::sync::mpsc;

/// How much a session may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams at once.
    pub streams: usize,
    /// The largest window of one stream, in bytes.
    pub window: u32,
    /// Window beyond the base of all streams together, in bytes.
    pub pool: u32,
    /// Bytes that may wait to be sent before writers wait.
    pub queue: usize,
}

impl Limits {
    /// For the port that carries nothing but bridges.
    pub(crate) const CONTROL: Limits =
        Limits { streams: 16, window: 256 * 1024, pool: 512 * 1024, queue: 128 * 1024 };
    /// For the port that carries everything else.
    pub(crate) const STREAMS: Limits =
        Limits { streams: 256, window: 512 * 1024, pool: 2048 * 1024, queue: 256 * 1024 };
}

/// The peer broke the rules; the session cannot go on.
#[derive(Debug, Error)]
pub(crate) enum MuxError {
    /// A payload is no sequence of frames.
    #[error("the peer sent a payload that cannot be read")]
    Frame(#[from] FrameError),
    /// More data than the window allowed.
    #[error("the peer overran the window of stream {}", .0.0)]
    Overrun(StreamId),
    /// Window beyond any reason.
    #[error("the peer gave stream {} more window than there can be", .0.0)]
    Window(StreamId),
    /// A stream that is not the peer's to open, or was opened before.
    #[error("the peer opened stream {}, which it may not", .0.0)]
    Open(StreamId),
    /// An acknowledgement of bytes that were not sent.
    #[error("the peer acknowledged {0}, which was not sent")]
    Ack(u64),
    /// A slot of the area that is not the peer's to use.
    #[error("the peer spoke of slot {0} of the area, which it may not use")]
    Slot(u32),
    /// A peer that keeps opening and never reads its refusals.
    #[error("the peer has {0} unread refusals")]
    Flood(usize),
}

/// A stream that the peer has opened. Dropped unaccepted, it is refused.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The port the peer dialled.
    pub port: u32,
    /// The stream; call [`ChannelStream::accept`] before use.
    pub stream: ChannelStream,
}

/// The state of one session; shared by its link and its streams.
#[derive(Debug)]
pub(crate) struct Mux {
    state: Mutex<State>,
    incoming: mpsc::Sender<Incoming>,
}

impl Mux {
    /// A session whose first record is `first` (already sealed). Streams the peer opens go to
    /// `incoming`; when that is full they are refused. Larger pieces go through the `area`.
    pub(crate) fn new(
        side: Side,
        limits: Limits,
        first: Option<Vec<u8>>,
        incoming: mpsc::Sender<Incoming>,
        area: Area,
    ) -> Arc<Self> {
        let state = Mutex::new(State::new(side, limits, first, area));
        Arc::new(Mux { state, incoming })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock, and half a change would still be bounded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says READY; the host does so once.
    pub(crate) fn announce(&self) {
        let mut state = self.lock();
        let reads = state.places.reads();
        state.out.push_urgent(Frame::Ready(reads));
        state.wake_driver();
    }

    /// Opens a stream to a port of the peer.
    ///
    /// # Errors
    /// `ConnectionReset` when the session is over, `QuotaExceeded` when it has too many streams.
    pub(crate) fn open(self: &Arc<Self>, port: u32) -> io::Result<ChannelStream> {
        let mut state = self.lock();
        if state.ended {
            return Err(reset());
        }
        let next = state.next_id.checked_add(2);
        let Some(next) = next.filter(|_| state.streams.len() < state.limits.streams) else {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many streams at once"));
        };
        let id = StreamId(std::mem::replace(&mut state.next_id, next));
        state.streams.insert(id, Stream::new(false));
        state.out.push(Frame::Open(id, port));
        state.wake_driver();
        drop(state);
        Ok(ChannelStream::new(Arc::clone(self), id))
    }

    /// Takes one payload from the link; `len` is the length of its record.
    pub(crate) fn receive(self: &Arc<Self>, payload: &[u8], len: usize) -> Result<(), MuxError> {
        let mut opened = Vec::new();
        let result = self.lock().receive(payload, len, &mut opened);
        for (id, port) in opened {
            // Dropping what does not fit refuses it, and must happen outside the lock.
            let stream = ChannelStream::new(Arc::clone(self), id);
            drop(self.incoming.try_send(Incoming { port, stream }));
        }
        result
    }

    /// The next record to send. Pending when there is none, or none may go now.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Outgoing> {
        let mut state = self.lock();
        let State { out, streams, pool, limits, places, .. } = &mut *state;
        while let Some(slot) = places.grant(cx) {
            out.push_urgent(Frame::Grant(slot));
        }
        let next = out.next(|id| {
            let stream = streams.get_mut(&id)?;
            stream.updating = false;
            Some(stream.inflow.update(limits.window, pool))
        });
        match next {
            Some(outgoing) => {
                state.admit_writers();
                Poll::Ready(outgoing)
            }
            None => {
                register(&mut state.driver, cx);
                Poll::Pending
            }
        }
    }

    /// Takes a sent record back, whose memory serves the next.
    pub(crate) fn recycle(&self, record: Vec<u8>) {
        self.lock().out.recycle(record);
    }

    /// Ends the session: every stream fails with `ConnectionReset` from now on.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let State { streams, pool, .. } = &mut *state;
        for stream in streams.values_mut() {
            stream.broken = true;
            stream.inflow.close(pool);
            stream.wake();
        }
        state.out = Outflow::new(state.side, None);
        state.places.end();
        state.waiting.clear();
    }
}
