//! What a session is about to send, in order, and how much of it may be under way.
//!
//! Frames that tell the peer about room or refusal go first; everything else keeps its order. The
//! guest may have no more under way than [`LINK_WINDOW`]: QEMU holds what the host has not yet read
//! in the buffer of a socket, and each time a client dies while that buffer is full QEMU loses one of
//! the port's 128 descriptors for good. The buffer has 208 KiB and takes seven messages of 32 KiB, or
//! 278 of a few bytes: what a record takes is its length and about [`WRITE_COST`]. Two windows never
//! meet there: nothing but greetings is sent before the new host says READY, and by then it has read all
//! that was under way to the one before.
//!
//! The window is six records, because three of them left an emulated guest idle for a fifth of a flood. With
//! neither does a port die of 800 SIGKILLs of the client in mid-transfer if it is never rebound but for
//! three unanswered greetings, which happened once, with three records as with six; the guest's
//! rebind of the driver after 64 sessions stands behind both.
//!
//! Pieces in the area have only a small frame there; how many are under way is how many slots there are.

use super::frame::{DATA_HEAD, Few, Frame, SMALL, StreamId, data_head};
use super::places::{Filled, Places, WORTH_PLACING};
use crate::channel::area::Place;
use crate::channel::record::{HEADER, MAX_PAYLOAD};
use std::collections::VecDeque;
use std::ops::Range;

/// The most link cost the guest may have unacknowledged: six of its largest records.
pub const LINK_WINDOW: u64 = 198 * 1024;
/// virtio-serial takes this much in one write.
pub const PORT_WRITE: usize = 32 * 1024;
/// What one message costs in a socket's buffer beyond its bytes.
const WRITE_COST: u64 = 1024;
/// The host acknowledges no sooner than after this much cost, which is every third of the guest's
/// largest records. Three of them still fit then, so nobody waits for ever.
const ACK_EVERY: u64 = 96 * 1024;
/// Nor after fewer pieces in the area than this, which is a quarter of those that can be under way.
const ACK_PLACED: u32 = 4;
/// Sent records kept for their memory.
const SPARES: usize = 8;
/// Shorter records are not worth keeping.
const WORTH_KEEPING: usize = 4096;
/// Small frames packed into one record.
const PACK: usize = 64;

/// What a record of `len` bytes costs on the link.
#[must_use]
pub fn cost(len: usize) -> u64 {
    len as u64 + WRITE_COST * len.div_ceil(PORT_WRITE) as u64
}

/// Which end of the port we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The keeper: opens odd streams, acknowledges.
    Host,
    /// The agent: opens even streams, waits for acknowledgement.
    Guest,
}

impl Side {
    /// The most data one frame of this side carries. The guest's records fit one write.
    #[must_use]
    pub const fn most_data(self) -> usize {
        match self {
            Side::Host => MAX_PAYLOAD - DATA_HEAD,
            Side::Guest => PORT_WRITE - HEADER - DATA_HEAD,
        }
    }
}

#[derive(Debug)]
enum Item {
    Short(Short),
    Data(StreamId, Vec<u8>),
}

/// What is one small frame, of which many fit one record.
#[derive(Debug)]
enum Short {
    Frame(Frame<'static>),
    /// Bytes in a slot of the area.
    Placed(StreamId, Filled, Range<usize>),
}

#[derive(Debug, Clone, Copy)]
enum Urgent {
    Frame(Frame<'static>),
    Window(StreamId),
}

/// The queue of a session.
#[derive(Debug)]
pub struct Outflow {
    side: Side,
    first: Option<Vec<u8>>,
    urgent: VecDeque<Urgent>,
    queue: VecDeque<Item>,
    spares: Vec<Vec<u8>>,
    bytes: usize,
    sent: u64,
    acked: u64,
    received: u64,
    reported: u64,
    /// Pieces in the area received since the last acknowledgement.
    placed: u32,
    /// What the guest has placed and the host not acknowledged, by what had been sent with it.
    under_way: VecDeque<(u64, Filled)>,
}

impl Outflow {
    /// An empty queue; `first` is a complete record that goes before everything else.
    pub fn new(side: Side, first: Option<Vec<u8>>) -> Self {
        Outflow {
            side,
            first,
            urgent: VecDeque::new(),
            queue: VecDeque::new(),
            spares: Vec::new(),
            bytes: 0,
            sent: 0,
            acked: 0,
            received: 0,
            reported: 0,
            placed: 0,
            under_way: VecDeque::new(),
        }
    }

    /// Bytes of data that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that wait.
    pub fn frames(&self) -> usize {
        self.queue.len() + self.urgent.len()
    }

    /// Queues a frame behind everything queued so far.
    pub fn push(&mut self, frame: Frame<'static>) {
        self.queue.push_back(Item::Short(Short::Frame(frame)));
    }

    /// Queues a frame before all others but urgent ones.
    pub fn push_urgent(&mut self, frame: Frame<'static>) {
        self.urgent.push_back(Urgent::Frame(frame));
    }

    /// Queues a window update, whose credit is asked for when it is sent.
    pub fn push_window(&mut self, stream: StreamId) {
        self.urgent.push_back(Urgent::Window(stream));
    }

    /// Queues data of a stream, in the parts it has; it fills up the record or the slot before it first.
    pub fn push_data(&mut self, stream: StreamId, parts: &[&[u8]], places: &Places) {
        for (number, part) in parts.iter().enumerate() {
            let rest = &parts[number + 1..];
            self.bytes += part.len();
            let is_before_lent = rest.first().is_some_and(|next| places.hold(next).is_some());
            if let Some((slot, from)) = places.hold(part) {
                let range = from..from + part.len();
                self.queue.push_back(Item::Short(Short::Placed(stream, slot, range)));
            } else if is_before_lent && part.len() <= 2 * Few::MOST {
                // A record of its own would cost more than what it is before.
                for few in part.chunks(Few::MOST).map(Few::first_of) {
                    self.queue.push_back(Item::Short(Short::Frame(Frame::Few(stream, few))));
                }
            } else {
                self.push_copy(stream, part, rest.iter().map(|part| part.len()).sum(), places);
            }
        }
    }

    /// Queues data that is copied. There will be room for `more` bytes that follow at once.
    fn push_copy(&mut self, stream: StreamId, mut data: &[u8], more: usize, places: &Places) {
        while !data.is_empty() {
            let n = match self.fill_slot(stream, data) {
                0 => self.push_slot(stream, data, more, places).unwrap_or_else(|| {
                    match self.fill_record(stream, data) {
                        0 => self.push_record(stream, data, more),
                        n => n,
                    }
                }),
                n => n,
            };
            data = &data[n..];
        }
    }

    /// Fills up a slot that is last in the queue, if it is the stream's; how many bytes went there.
    fn fill_slot(&mut self, stream: StreamId, data: &[u8]) -> usize {
        match self.queue.back_mut() {
            Some(Item::Short(Short::Placed(last, slot, range))) if *last == stream => {
                let n = slot.write(range.end, data).unwrap_or(0);
                range.end += n;
                n
            }
            Some(Item::Data(..) | Item::Short(_)) | None => 0,
        }
    }

    /// Queues a slot with as much as it takes, if there is one and it is worth it.
    fn push_slot(
        &mut self,
        stream: StreamId,
        data: &[u8],
        more: usize,
        places: &Places,
    ) -> Option<usize> {
        if data.len() + more < WORTH_PLACING {
            return None;
        }
        let mut slot = places.take()?;
        let n = slot.write(0, data).ok()?;
        self.queue.push_back(Item::Short(Short::Placed(stream, slot, 0..n)));
        Some(n)
    }

    /// The same for a record.
    fn fill_record(&mut self, stream: StreamId, data: &[u8]) -> usize {
        match self.queue.back_mut() {
            Some(Item::Data(last, record)) if *last == stream => {
                let most = HEADER + DATA_HEAD + self.side.most_data();
                let n = data.len().min(most - record.len());
                record.extend_from_slice(&data[..n]);
                n
            }
            Some(Item::Data(..) | Item::Short(_)) | None => 0,
        }
    }

    /// Queues as much as one record takes.
    fn push_record(&mut self, stream: StreamId, data: &[u8], more: usize) -> usize {
        let most = self.side.most_data();
        let n = data.len().min(most);
        let mut record = self.spares.pop().unwrap_or_default();
        record.reserve_exact(HEADER + DATA_HEAD + (data.len() + more).min(most));
        record.resize(HEADER, 0);
        record.extend_from_slice(&data_head(stream));
        record.extend_from_slice(&data[..n]);
        self.queue.push_back(Item::Data(stream, record));
        n
    }

    /// Takes a sent record back.
    pub fn recycle(&mut self, mut record: Vec<u8>) {
        if self.spares.len() < SPARES && record.capacity() >= WORTH_KEEPING {
            record.clear();
            self.spares.push(record);
        }
    }

    /// Drops all that waits for a stream. True when its OPEN was among it: then the peer has never
    /// heard of the stream.
    pub fn purge(&mut self, stream: StreamId) -> bool {
        let mut unheard = false;
        let bytes = &mut self.bytes;
        self.queue.retain(|item| match item {
            Item::Short(Short::Frame(Frame::Open(of, _))) if *of == stream => {
                unheard = true;
                false
            }
            Item::Short(Short::Frame(Frame::Eof(of) | Frame::Stop(of))) => *of != stream,
            Item::Short(Short::Frame(Frame::Few(of, few))) => {
                if *of == stream {
                    *bytes -= few.bytes().len();
                }
                *of != stream
            }
            Item::Short(Short::Frame(_)) => true,
            Item::Data(of, record) => {
                if *of == stream {
                    *bytes -= record.len() - HEADER - DATA_HEAD;
                }
                *of != stream
            }
            Item::Short(Short::Placed(of, _, range)) => {
                if *of == stream {
                    *bytes -= range.len();
                }
                *of != stream
            }
        });
        self.urgent.retain(|item| match item {
            Urgent::Window(of) | Urgent::Frame(Frame::Accept(of)) => *of != stream,
            Urgent::Frame(_) => true,
        });
        unheard
    }

    /// Counts a received record, to be acknowledged by the host. True when that is due.
    pub fn count_received(&mut self, len: usize) -> bool {
        self.received += cost(len);
        self.ack_due()
    }

    /// Counts a piece received in the area, as [`Outflow::count_received`] does a record.
    pub fn count_placed(&mut self) -> bool {
        self.placed = self.placed.saturating_add(1);
        self.ack_due()
    }

    /// Takes the host's acknowledgement. False when it acknowledges what was never sent.
    pub fn acknowledge(&mut self, cost: u64) -> bool {
        let sane = cost >= self.acked && cost <= self.sent;
        if sane {
            self.acked = cost;
            let read = self.under_way.partition_point(|(sent, _)| *sent <= cost);
            self.under_way.drain(..read);
        }
        sane
    }

    /// Whether anything placed waits for the host.
    pub fn has_placed(&self) -> bool {
        let is_placed = |item: &Item| matches!(item, Item::Short(Short::Placed(..)));
        !self.under_way.is_empty() || self.queue.iter().any(is_placed)
    }

    /// Link cost under way.
    #[cfg(test)]
    pub fn unacknowledged(&self) -> u64 {
        self.sent - self.acked
    }

    fn ack_due(&self) -> bool {
        self.side == Side::Host
            && (self.received - self.reported >= ACK_EVERY || self.placed >= ACK_PLACED)
    }

    fn may_send(&self, len: usize) -> bool {
        match self.side {
            Side::Host => true,
            Side::Guest => self.sent + cost(len) - self.acked <= LINK_WINDOW,
        }
    }

    /// The next record, not yet sealed, or nothing when there is none or none may go. `credit` says
    /// how much window a stream gives.
    pub fn next(&mut self, mut credit: impl FnMut(StreamId) -> Option<u32>) -> Option<Outgoing> {
        if let Some(record) = self.first.take() {
            return Some(Outgoing { record, sealed: true });
        }
        let mut placed = Vec::new();
        let record = if self.ack_due() || !self.urgent.is_empty() {
            if !self.may_send(HEADER + PACK * SMALL) {
                return None;
            }
            self.pack(&mut credit)
        } else {
            let len = match self.queue.front()? {
                Item::Data(_, record) => record.len(),
                Item::Short(_) => HEADER + SMALL,
            };
            if !self.may_send(len) {
                return None;
            }
            match self.queue.pop_front_if(|item| matches!(item, Item::Data(..))) {
                Some(Item::Data(_, record)) => {
                    self.bytes -= record.len() - HEADER - DATA_HEAD;
                    record
                }
                Some(Item::Short(_)) | None => self.pack_queue(&mut placed),
            }
        };
        self.sent += cost(record.len());
        self.under_way.extend(placed.into_iter().map(|slot| (self.sent, slot)));
        Some(Outgoing { record, sealed: false })
    }

    /// The small frames at the front of the queue.
    fn pack_queue(&mut self, placed: &mut Vec<Filled>) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER + 2 * SMALL);
        record.resize(HEADER, 0);
        while record.len() < HEADER + PACK * SMALL
            && self.may_send(record.len() + SMALL)
            && let Some(Item::Short(short)) =
                self.queue.pop_front_if(|item| matches!(item, Item::Short(_)))
        {
            match short {
                Short::Frame(frame) => {
                    if let Frame::Few(_, few) = &frame {
                        self.bytes -= few.bytes().len();
                    }
                    frame.put(&mut record);
                }
                Short::Placed(stream, slot, range) => {
                    self.bytes -= range.len();
                    let number = |n| u32::try_from(n).unwrap_or_default();
                    let (from, len) = (number(range.start), number(range.len()));
                    let place = Place { slot: u16::from(slot.number()), from, len };
                    Frame::Placed(stream, place).put(&mut record);
                    placed.extend(slot.sent());
                }
            }
        }
        record
    }

    fn pack(&mut self, credit: &mut impl FnMut(StreamId) -> Option<u32>) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER + 2 * SMALL);
        record.resize(HEADER, 0);
        if self.ack_due() {
            (self.reported, self.placed) = (self.received, 0);
            Frame::Ack(self.received).put(&mut record);
        }
        while record.len() < HEADER + PACK * SMALL
            && let Some(urgent) = self.urgent.pop_front()
        {
            match urgent {
                Urgent::Frame(frame) => frame.put(&mut record),
                Urgent::Window(stream) => {
                    if let Some(credit) = credit(stream) {
                        Frame::Window(stream, credit).put(&mut record);
                    }
                }
            }
        }
        record
    }
}

/// A record on its way to the port.
#[derive(Debug)]
pub struct Outgoing {
    /// Room for the header, then the payload.
    pub record: Vec<u8>,
    /// Whether the header is there already.
    pub sealed: bool,
}
