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
mod stream;
#[cfg(test)]
mod tests;

pub use stream::ChannelStream;

use frame::{Frame, FrameError, StreamId};
use inflow::{BASE_WINDOW, Inflow, Pool};
use outflow::{Outflow, Outgoing, Side};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
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
        Limits { streams: 256, window: 256 * 1024, pool: 1024 * 1024, queue: 256 * 1024 };
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

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Receiving {
    Open,
    Ended,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Sending {
    Open,
    /// We said EOF.
    Ended,
    /// The peer said STOP.
    Stopped,
}

#[derive(Debug)]
struct Stream {
    accepted: bool,
    broken: bool,
    receiving: Receiving,
    sending: Sending,
    inflow: Inflow,
    updating: bool,
    credit: u32,
    waiting: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Stream {
    fn new(accepted: bool) -> Self {
        Stream {
            accepted,
            broken: false,
            receiving: Receiving::Open,
            sending: Sending::Open,
            inflow: Inflow::new(),
            updating: false,
            credit: BASE_WINDOW,
            waiting: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct State {
    side: Side,
    limits: Limits,
    next_id: u32,
    last_peer_id: u32,
    streams: HashMap<StreamId, Stream>,
    pool: Pool,
    out: Outflow,
    /// Streams whose writers wait for room in the queue, in order.
    waiting: VecDeque<StreamId>,
    driver: Option<Waker>,
    ended: bool,
}

/// The state of one session; shared by its link and its streams.
#[derive(Debug)]
pub(crate) struct Mux {
    state: Mutex<State>,
    incoming: mpsc::Sender<Incoming>,
}

impl Mux {
    /// A session whose first record is `first` (already sealed). Streams the peer opens go to
    /// `incoming`; when that is full they are refused.
    pub(crate) fn new(
        side: Side,
        limits: Limits,
        first: Option<Vec<u8>>,
        incoming: mpsc::Sender<Incoming>,
    ) -> Arc<Self> {
        let state = State {
            side,
            limits,
            next_id: match side {
                Side::Host => 1,
                Side::Guest => 2,
            },
            last_peer_id: 0,
            streams: HashMap::new(),
            pool: Pool::new(limits.pool),
            out: Outflow::new(side, first),
            waiting: VecDeque::new(),
            driver: None,
            ended: false,
        };
        Arc::new(Mux { state: Mutex::new(state), incoming })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock, and half a change would still be bounded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says READY; the host does so once.
    pub(crate) fn announce(&self) {
        let mut state = self.lock();
        state.out.push_urgent(Frame::Ready);
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
        let State { out, streams, pool, limits, .. } = &mut *state;
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
        state.waiting.clear();
    }
}

impl State {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn receive(
        &mut self,
        mut payload: &[u8],
        len: usize,
        opened: &mut Vec<(StreamId, u32)>,
    ) -> Result<(), MuxError> {
        if self.out.count_received(len) {
            self.wake_driver();
        }
        while !payload.is_empty() {
            let (frame, rest) = frame::parse(payload)?;
            payload = rest;
            match frame {
                Frame::Data(id, bytes) => self.on_data(id, bytes)?,
                Frame::Open(id, port) => {
                    if self.on_open(id)? {
                        opened.push((id, port));
                    }
                }
                Frame::Window(id, credit) => self.on_window(id, credit)?,
                Frame::Ack(cost) => {
                    if !self.out.acknowledge(cost) {
                        return Err(MuxError::Ack(cost));
                    }
                    self.wake_driver();
                }
                Frame::Accept(id) => self.with(id, |stream| {
                    stream.accepted = true;
                    stream.wake_writer();
                }),
                Frame::Eof(id) => self.with(id, |stream| {
                    stream.receiving = Receiving::Ended;
                    stream.wake_reader();
                }),
                Frame::Stop(id) => {
                    self.out.purge(id);
                    self.with(id, |stream| {
                        stream.sending = Sending::Stopped;
                        stream.wake_writer();
                    });
                }
                Frame::Reset(id) => self.on_reset(id),
                Frame::Ready => {}
            }
        }
        Ok(())
    }

    /// Frames of a stream that was dropped here are late, not wrong.
    fn with(&mut self, id: StreamId, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream);
        }
    }

    fn on_data(&mut self, id: StreamId, bytes: &[u8]) -> Result<(), MuxError> {
        let State { streams, pool, .. } = self;
        let Some(stream) = streams.get_mut(&id) else { return Ok(()) };
        if stream.broken {
            return Ok(());
        }
        if stream.receiving == Receiving::Ended {
            return Err(MuxError::Overrun(id));
        }
        stream.inflow.receive(bytes, pool).map_err(|inflow::Overrun| MuxError::Overrun(id))?;
        stream.wake_reader();
        Ok(())
    }

    /// Whether the stream is ours to hand out; else it has been refused.
    fn on_open(&mut self, id: StreamId) -> Result<bool, MuxError> {
        let theirs = match self.side {
            Side::Host => id.0.is_multiple_of(2),
            Side::Guest => !id.0.is_multiple_of(2),
        };
        if !theirs || id.0 <= self.last_peer_id {
            return Err(MuxError::Open(id));
        }
        self.last_peer_id = id.0;
        let most = 4 * self.limits.streams;
        if self.out.frames() > most {
            return Err(MuxError::Flood(self.out.frames()));
        }
        if self.streams.len() >= self.limits.streams {
            self.out.push_urgent(Frame::Reset(id));
            self.wake_driver();
            return Ok(false);
        }
        self.streams.insert(id, Stream::new(true));
        Ok(true)
    }

    fn on_window(&mut self, id: StreamId, credit: u32) -> Result<(), MuxError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.credit = stream.credit.checked_add(credit).ok_or(MuxError::Window(id))?;
        stream.wake_writer();
        Ok(())
    }

    fn on_reset(&mut self, id: StreamId) {
        self.out.purge(id);
        let State { streams, pool, .. } = self;
        if let Some(stream) = streams.get_mut(&id) {
            stream.broken = true;
            stream.inflow.close(pool);
            stream.wake();
        }
        self.admit_writers();
    }

    /// Wakes the next writer when the queue has room, and all when it is empty: a woken writer
    /// may have lost interest, and the queue must not starve for that.
    fn admit_writers(&mut self) {
        let empty = self.out.bytes() == 0;
        while self.out.bytes() < self.limits.queue
            && let Some(id) = self.waiting.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.waiting = false;
            stream.wake_writer();
            if !empty {
                break;
            }
        }
    }

    /// How many bytes the stream may send now. Registers the waker in any case: a writer also
    /// wants to know when the stream breaks.
    fn poll_room(&mut self, id: StreamId, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let most = self.side.most_data();
        let full = self.out.bytes() >= self.limits.queue;
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(reset())) };
        if stream.broken {
            return Poll::Ready(Err(reset()));
        }
        match stream.sending {
            Sending::Open => {}
            Sending::Ended | Sending::Stopped => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        register(&mut stream.writer, cx);
        if full && !stream.waiting {
            stream.waiting = true;
            self.waiting.push_back(id);
        }
        if full || stream.credit == 0 {
            return Poll::Pending;
        }
        Poll::Ready(Ok(most.min(stream.credit as usize)))
    }

    /// Queues data for which [`State::poll_room`] said that there is room.
    fn send(&mut self, id: StreamId, data: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.credit = stream.credit.saturating_sub(u32::try_from(data.len()).unwrap_or(u32::MAX));
        self.out.push_data(id, data);
        self.wake_driver();
    }

    fn shut(&mut self, id: StreamId) -> io::Result<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(reset()) };
        if stream.broken {
            return Err(reset());
        }
        match stream.sending {
            Sending::Ended | Sending::Stopped => return Ok(()),
            Sending::Open => stream.sending = Sending::Ended,
        }
        self.out.push(Frame::Eof(id));
        self.wake_driver();
        Ok(())
    }

    /// Tells the peer about room if it is time.
    fn consumed(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.updating
            || stream.broken
            || stream.receiving == Receiving::Ended
            || !stream.inflow.wants_update()
        {
            return;
        }
        stream.updating = true;
        self.out.push_window(id);
        self.wake_driver();
    }

    /// The handle is gone.
    fn forget(&mut self, id: StreamId) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        stream.inflow.close(&mut self.pool);
        if stream.broken || self.ended {
            return;
        }
        match (stream.sending, stream.receiving) {
            (Sending::Ended | Sending::Stopped, Receiving::Ended) => return,
            (Sending::Ended, Receiving::Open) => self.out.push(Frame::Stop(id)),
            (Sending::Stopped, Receiving::Open) | (Sending::Open, _) => {
                if !self.out.purge(id) {
                    self.out.push_urgent(Frame::Reset(id));
                }
                self.admit_writers();
            }
        }
        self.wake_driver();
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        Some(_) | None => *slot = Some(cx.waker().clone()),
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
