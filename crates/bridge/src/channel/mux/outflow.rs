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

use super::frame::{DATA_HEAD, Frame, SMALL, StreamId};
use super::places::{Filled, Places};
use super::queue::{PACKED, Queue};
use crate::channel::record::{HEADER, MAX_PAYLOAD};
use std::collections::VecDeque;

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

#[derive(Debug, Clone, Copy)]
enum Urgent {
    Frame(Frame<'static>),
    Window(StreamId),
}

/// See the module.
#[derive(Debug)]
pub struct Outflow {
    side: Side,
    first: Option<Vec<u8>>,
    urgent: VecDeque<Urgent>,
    queue: Queue,
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
            queue: Queue::new(side.most_data()),
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
        self.queue.bytes()
    }

    /// Frames that wait.
    pub fn frames(&self) -> usize {
        self.queue.frames() + self.urgent.len()
    }

    /// Queues a frame behind everything queued so far.
    pub fn push(&mut self, frame: Frame<'static>) {
        self.queue.push(frame);
    }

    /// Queues a frame before all others but urgent ones.
    pub fn push_urgent(&mut self, frame: Frame<'static>) {
        self.urgent.push_back(Urgent::Frame(frame));
    }

    /// Queues a window update, whose credit is asked for when it is sent.
    pub fn push_window(&mut self, stream: StreamId) {
        self.urgent.push_back(Urgent::Window(stream));
    }

    /// Queues data of a stream, in the parts it has.
    pub fn push_data(&mut self, stream: StreamId, parts: &[&[u8]], places: &Places) {
        self.queue.push_data(stream, parts, places);
    }

    /// Takes a sent record back.
    pub fn recycle(&mut self, record: Vec<u8>) {
        self.queue.recycle(record);
    }

    /// Drops all that waits for a stream. True when its OPEN was among it: then the peer has never
    /// heard of the stream.
    pub fn purge(&mut self, stream: StreamId) -> bool {
        self.urgent.retain(|item| match item {
            Urgent::Window(of) | Urgent::Frame(Frame::Accept(of)) => *of != stream,
            Urgent::Frame(_) => true,
        });
        self.queue.purge(stream)
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
        !self.under_way.is_empty() || self.queue.has_placed()
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

    /// Whether a record that long may go now.
    fn may_send(&self) -> impl Fn(usize) -> bool + use<> {
        let (side, under_way) = (self.side, self.sent - self.acked);
        move |len| match side {
            Side::Host => true,
            Side::Guest => under_way + cost(len) <= LINK_WINDOW,
        }
    }

    /// The next record, not yet sealed, or nothing when there is none or none may go. `credit` says
    /// how much window a stream gives.
    pub fn next(&mut self, mut credit: impl FnMut(StreamId) -> Option<u32>) -> Option<Outgoing> {
        if let Some(record) = self.first.take() {
            return Some(Outgoing { record, sealed: true });
        }
        let may = self.may_send();
        let mut placed = Vec::new();
        let record = if self.ack_due() || !self.urgent.is_empty() {
            if !may(PACKED) {
                return None;
            }
            self.pack(&mut credit)
        } else {
            if !may(self.queue.next_len()?) {
                return None;
            }
            self.queue.next(may, &mut placed)
        };
        self.sent += cost(record.len());
        self.under_way.extend(placed.into_iter().map(|slot| (self.sent, slot)));
        Some(Outgoing { record, sealed: false })
    }

    fn pack(&mut self, credit: &mut impl FnMut(StreamId) -> Option<u32>) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER + 2 * SMALL);
        record.resize(HEADER, 0);
        if self.ack_due() {
            (self.reported, self.placed) = (self.received, 0);
            Frame::Ack(self.received).put(&mut record);
        }
        while record.len() < PACKED
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
