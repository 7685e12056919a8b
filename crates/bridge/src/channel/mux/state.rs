//! The table of a session's streams, and what each frame and each call does to it.
//!
//! All of it runs under the session's lock, decides, and only touches wakers beyond itself.

use super::frame::{self, Frame, StreamId};
use super::inflow::{self, BASE_WINDOW, Inflow, Pool};
use super::outflow::{Outflow, Side};
use super::places::{Area, Placed, Places};
use super::{Limits, MuxError};
use crate::channel::area::Place;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll, Waker};

/// The direction towards us.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Receiving {
    Open,
    /// The peer said EOF.
    Ended,
}

/// The direction away from us.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Sending {
    Open,
    /// We said EOF.
    Ended,
    /// The peer said STOP.
    Stopped,
}

/// One stream, for as long as its handle lives.
#[derive(Debug)]
pub(super) struct Stream {
    /// Somebody serves it.
    pub(super) accepted: bool,
    /// Reset, or its session is over.
    pub(super) broken: bool,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    pub(super) inflow: Inflow,
    /// A window update for it is queued.
    pub(super) updating: bool,
    /// Bytes we may still send.
    pub(super) credit: u32,
    /// Its writer stands in [`State::waiting`].
    pub(super) waiting: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Stream {
    pub(super) fn new(accepted: bool) -> Self {
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

    pub(super) fn wake(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) side: Side,
    pub(super) limits: Limits,
    pub(super) next_id: u32,
    /// The peer's ids only rise.
    pub(super) last_peer_id: u32,
    pub(super) streams: HashMap<StreamId, Stream>,
    pub(super) pool: Pool,
    pub(super) out: Outflow,
    pub(super) places: Places,
    /// Streams whose writers wait for room in the queue, in order.
    pub(super) waiting: VecDeque<StreamId>,
    /// The link, when it has nothing to send.
    pub(super) driver: Option<Waker>,
    pub(super) ended: bool,
}

impl State {
    pub(super) fn new(side: Side, limits: Limits, first: Option<Vec<u8>>, area: Area) -> Self {
        State {
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
            places: Places::new(area),
            waiting: VecDeque::new(),
            driver: None,
            ended: false,
        }
    }

    pub(super) fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    pub(super) fn receive(
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
                Frame::Data(id, bytes) => {
                    self.places.on_data(bytes.len());
                    self.on_data(id, bytes)?;
                }
                Frame::Few(id, few) => self.on_data(id, few.bytes())?,
                Frame::Placed(id, place) => self.on_placed(id, place)?,
                Frame::Grant(slot) => self.places.on_grant(slot)?,
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
                    self.admit_writers();
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
                Frame::Ready(has_area) => self.places.on_ready(has_area),
            }
        }
        Ok(())
    }

    /// Frames of a stream that was dropped here are late, not wrong.
    pub(super) fn with(&mut self, id: StreamId, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream);
        }
    }

    pub(super) fn on_data(&mut self, id: StreamId, bytes: &[u8]) -> Result<(), MuxError> {
        let State { streams, pool, .. } = self;
        let Some(stream) = receiver(streams, id)? else { return Ok(()) };
        stream.inflow.receive(bytes, pool).map_err(|inflow::Overrun| MuxError::Overrun(id))?;
        stream.wake_reader();
        Ok(())
    }

    /// Data that lies in the area.
    pub(super) fn on_placed(&mut self, id: StreamId, place: Place) -> Result<(), MuxError> {
        if self.out.count_placed() {
            self.wake_driver();
        }
        let State { streams, pool, places, .. } = self;
        let placed = places.on_placed(place)?;
        let Some(stream) = receiver(streams, id)? else { return Ok(()) };
        let received = match placed {
            Placed::Copy(bytes) => stream.inflow.receive(bytes, pool),
            Placed::Slot(slot, range) => stream.inflow.receive_slot(slot, range),
        };
        received.map_err(|inflow::Overrun| MuxError::Overrun(id))?;
        stream.wake_reader();
        Ok(())
    }

    /// Whether the stream is ours to hand out; else it has been refused.
    pub(super) fn on_open(&mut self, id: StreamId) -> Result<bool, MuxError> {
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

    pub(super) fn on_window(&mut self, id: StreamId, credit: u32) -> Result<(), MuxError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.credit = stream.credit.checked_add(credit).ok_or(MuxError::Window(id))?;
        stream.wake_writer();
        Ok(())
    }

    pub(super) fn on_reset(&mut self, id: StreamId) {
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
    pub(super) fn admit_writers(&mut self) {
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
    pub(super) fn poll_room(
        &mut self,
        id: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let most = self.places.most_data(self.side);
        let full = self.out.bytes() >= self.limits.queue
            || (self.places.are_exhausted() && self.out.has_placed());
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
    pub(super) fn send(&mut self, id: StreamId, parts: &[&[u8]]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        stream.credit = stream.credit.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
        self.out.push_data(id, parts, &self.places);
        self.wake_driver();
    }

    pub(super) fn shut(&mut self, id: StreamId) -> io::Result<()> {
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
    pub(super) fn consumed(&mut self, id: StreamId) {
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
    pub(super) fn forget(&mut self, id: StreamId) {
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

/// The stream that data is for, if anybody still wants it.
fn receiver(
    streams: &mut HashMap<StreamId, Stream>,
    id: StreamId,
) -> Result<Option<&mut Stream>, MuxError> {
    let Some(stream) = streams.get_mut(&id).filter(|stream| !stream.broken) else {
        return Ok(None);
    };
    match stream.receiving {
        Receiving::Ended => Err(MuxError::Overrun(id)),
        Receiving::Open => Ok(Some(stream)),
    }
}

pub(super) fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        Some(_) | None => *slot = Some(cx.waker().clone()),
    }
}

pub(super) fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}
