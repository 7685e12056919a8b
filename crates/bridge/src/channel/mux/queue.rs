//! The data and frames of a session that wait their turn, in order.
//!
//! Data lies in a slot of the area where there is one and it is worth it, else in a record of its own; whatever is
//! small shares a record.

use super::frame::{DATA_HEAD, Few, Frame, SMALL, StreamId, data_head};
use super::places::{Filled, Places, WORTH_PLACING};
use crate::channel::area::Place;
use crate::channel::record::HEADER;
use std::collections::VecDeque;
use std::ops::Range;

/// Sent records kept for their memory.
const SPARES: usize = 8;
/// Shorter records are not worth keeping.
const WORTH_KEEPING: usize = 4096;
/// What a record of small frames has at most, its header included, before the last is put there.
pub(super) const PACKED: usize = HEADER + 64 * SMALL;

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

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    spares: Vec<Vec<u8>>,
    bytes: usize,
    /// The most data in one record.
    most: usize,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Queue { items: VecDeque::new(), spares: Vec::new(), bytes: 0, most }
    }

    /// Bytes of data that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that wait.
    pub(super) fn frames(&self) -> usize {
        self.items.len()
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, frame: Frame<'static>) {
        self.items.push_back(Item::Short(Short::Frame(frame)));
    }

    /// Queues data of a stream, in the parts it has; it fills up the record or the slot before it first.
    pub(super) fn push_data(&mut self, stream: StreamId, parts: &[&[u8]], places: &Places) {
        for (number, part) in parts.iter().enumerate() {
            let rest = &parts[number + 1..];
            self.bytes += part.len();
            let is_before_lent = rest.first().is_some_and(|next| places.hold(next).is_some());
            if let Some((slot, from)) = places.hold(part) {
                let range = from..from + part.len();
                self.items.push_back(Item::Short(Short::Placed(stream, slot, range)));
            } else if is_before_lent && part.len() <= 2 * Few::MOST {
                // A record of its own would cost more than what it is before.
                for few in part.chunks(Few::MOST).map(Few::first_of) {
                    self.items.push_back(Item::Short(Short::Frame(Frame::Few(stream, few))));
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
        match self.items.back_mut() {
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
        self.items.push_back(Item::Short(Short::Placed(stream, slot, 0..n)));
        Some(n)
    }

    /// Fills up a record that is last in the queue, if it is the stream's.
    fn fill_record(&mut self, stream: StreamId, data: &[u8]) -> usize {
        match self.items.back_mut() {
            Some(Item::Data(last, record)) if *last == stream => {
                let most = HEADER + DATA_HEAD + self.most;
                let n = data.len().min(most - record.len());
                record.extend_from_slice(&data[..n]);
                n
            }
            Some(Item::Data(..) | Item::Short(_)) | None => 0,
        }
    }

    /// Queues as much as one record takes.
    fn push_record(&mut self, stream: StreamId, data: &[u8], more: usize) -> usize {
        let n = data.len().min(self.most);
        let mut record = self.spares.pop().unwrap_or_default();
        record.reserve_exact(HEADER + DATA_HEAD + (data.len() + more).min(self.most));
        record.resize(HEADER, 0);
        record.extend_from_slice(&data_head(stream));
        record.extend_from_slice(&data[..n]);
        self.items.push_back(Item::Data(stream, record));
        n
    }

    /// Takes a sent record back.
    pub(super) fn recycle(&mut self, mut record: Vec<u8>) {
        if self.spares.len() < SPARES && record.capacity() >= WORTH_KEEPING {
            record.clear();
            self.spares.push(record);
        }
    }

    /// Drops all that waits for a stream. True when its OPEN was among it: then the peer has never
    /// heard of the stream.
    pub(super) fn purge(&mut self, stream: StreamId) -> bool {
        let mut unheard = false;
        let bytes = &mut self.bytes;
        self.items.retain(|item| match item {
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
        unheard
    }

    /// Whether anything placed waits.
    pub(super) fn has_placed(&self) -> bool {
        let is_placed = |item: &Item| matches!(item, Item::Short(Short::Placed(..)));
        self.items.iter().any(is_placed)
    }

    /// The length of the record that is next, or the least it can have. Nothing when none waits.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.items.front().map(|item| match item {
            Item::Data(_, record) => record.len(),
            Item::Short(_) => HEADER + SMALL,
        })
    }

    /// The next record: one of data, or small frames for as long as it `may` be that long. What they have placed goes
    /// to `placed`.
    pub(super) fn next(
        &mut self,
        may: impl Fn(usize) -> bool,
        placed: &mut Vec<Filled>,
    ) -> Vec<u8> {
        match self.items.pop_front_if(|item| matches!(item, Item::Data(..))) {
            Some(Item::Data(_, record)) => {
                self.bytes -= record.len() - HEADER - DATA_HEAD;
                record
            }
            Some(Item::Short(_)) | None => self.pack(may, placed),
        }
    }

    /// The small frames at the front of the queue.
    fn pack(&mut self, may: impl Fn(usize) -> bool, placed: &mut Vec<Filled>) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER + 2 * SMALL);
        record.resize(HEADER, 0);
        while record.len() < PACKED
            && may(record.len() + SMALL)
            && let Some(Item::Short(short)) =
                self.items.pop_front_if(|item| matches!(item, Item::Short(_)))
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
}
