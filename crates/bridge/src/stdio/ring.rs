//! The bytes of a stream that its far end has not yet acknowledged.
//!
//! Pure: nothing here waits. Offsets are absolute and never go back.
//!
//! ```text
//!        base                      end = base + kept
//!   ------|=========================|------------------->
//!    freed   kept: sent or not yet    to be written
//! ```
//!
//! A full ring refuses bytes, as a full pipe does ([`WhenFull::Block`]), or lets
//! the oldest go and so keeps the latest ([`WhenFull::Drop`]). Dropped bytes that
//! the reader never saw appear to it as a gap.
//!
//! Large pieces are kept as they come. Small ones are gathered: each would need some memory of its own.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Default size of a ring in bytes.
pub const DEFAULT_RING: usize = 1 << 20;

/// Shorter pieces are gathered.
const SMALL: usize = 4096;

/// Gathered until they are so many.
const GATHERED: usize = 64 * 1024;

/// What a full ring does with more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The writer waits, as with a full pipe.
    #[default]
    Block,
    /// The oldest bytes go; their number is counted.
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// More may be written.
    Open,
    /// The writer ended the stream; what is kept must still go out.
    Finished,
    /// The reader wants no more.
    Stopped,
}

/// A bounded window onto a byte stream, addressed by absolute offsets.
#[derive(Debug)]
pub struct OutputRing {
    pieces: VecDeque<Bytes>,
    /// Small pieces, behind the others.
    tail: Vec<u8>,
    /// Bytes in all of them.
    kept: usize,
    base: u64,
    capacity: usize,
    when_full: WhenFull,
    phase: Phase,
    dropped: u64,
}

/// What there is to send at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes, at least one.
    Data(&'a [u8]),
    /// Bytes up to this offset were dropped.
    Gap(u64),
    /// The stream ends here.
    Eof,
    /// Nothing yet.
    Nothing,
    /// The reader wants no more.
    Stopped,
}

/// An offset that is not in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} is beyond the stream's end {end}")]
pub struct RingFault {
    /// The offset named.
    pub offset: u64,
    /// End of what was written so far.
    pub end: u64,
}

impl Default for OutputRing {
    fn default() -> Self {
        Self::new(DEFAULT_RING, WhenFull::Block)
    }
}

impl OutputRing {
    /// An empty ring for `capacity` bytes (at least 1), at offset 0.
    pub fn new(capacity: usize, when_full: WhenFull) -> Self {
        Self::starting_at(0, capacity, when_full)
    }

    /// An empty ring whose first byte will have the offset `base`: for the
    /// writer that goes on with a stream after its predecessor was killed.
    pub fn starting_at(base: u64, capacity: usize, when_full: WhenFull) -> Self {
        Self {
            pieces: VecDeque::new(),
            tail: Vec::new(),
            kept: 0,
            base,
            capacity: capacity.max(1),
            when_full,
            phase: Phase::Open,
            dropped: 0,
        }
    }

    /// Offset of the oldest byte kept.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Offset the next written byte will have.
    pub fn end(&self) -> u64 {
        self.base + self.kept as u64
    }

    /// How many bytes [`WhenFull::Drop`] let go.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether the writer ended the stream.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// Whether the reader said that it wants no more.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Takes bytes from the front of the writer's, and says how many: fewer than offered when
    /// the ring is nearly full, 0 when it is full, `None` when nobody wants them
    /// (the stream was stopped, or ended by the writer itself).
    pub fn offer(&mut self, bytes: &mut Bytes) -> Option<usize> {
        let taken = self.room_for(bytes.len())?;
        let kept = bytes.split_to(taken).split_off(self.make_room(taken));
        if kept.len() < SMALL {
            self.gather(&kept);
        } else {
            self.close_tail();
            self.kept += kept.len();
            self.pieces.push_back(kept);
        }
        Some(taken)
    }

    /// The same with bytes that are to be copied.
    pub fn offer_copy(&mut self, bytes: &[u8]) -> Option<usize> {
        let taken = self.room_for(bytes.len())?;
        if taken >= SMALL {
            return self.offer(&mut Bytes::copy_from_slice(&bytes[..taken]));
        }
        let skipped = self.make_room(taken);
        self.gather(&bytes[skipped..taken]);
        Some(taken)
    }

    /// How many of so many bytes may come.
    fn room_for(&self, count: usize) -> Option<usize> {
        if self.phase != Phase::Open {
            return None;
        }
        Some(match self.when_full {
            WhenFull::Block => count.min(self.capacity - self.kept),
            WhenFull::Drop => count,
        })
    }

    /// Lets the oldest bytes go until there is room for `count`. How many of those have no room even then.
    fn make_room(&mut self, count: usize) -> usize {
        let skipped = count.saturating_sub(self.capacity);
        let evicted = (self.kept + count - skipped).saturating_sub(self.capacity);
        self.free(evicted);
        self.base += skipped as u64;
        self.dropped += (evicted + skipped) as u64;
        skipped
    }

    fn gather(&mut self, bytes: &[u8]) {
        self.kept += bytes.len();
        self.tail.extend_from_slice(bytes);
        if self.tail.len() >= GATHERED {
            self.close_tail();
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).into());
        }
    }

    /// Drops the oldest bytes, as many as there are of `count`.
    fn free(&mut self, count: usize) {
        let mut left = count.min(self.kept);
        self.base += left as u64;
        self.kept -= left;
        while let Some(piece) = self.pieces.front_mut()
            && left > 0
        {
            let part = left.min(piece.len());
            piece.advance(part);
            left -= part;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        self.tail.drain(..left);
        if self.kept == 0 {
            // An idle ring holds no memory.
            (self.pieces, self.tail) = (VecDeque::new(), Vec::new());
        }
    }

    /// The writer ends the stream. What is kept still goes out.
    pub fn finish(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Finished;
        }
    }

    /// The reader wants no more: everything kept is freed.
    pub fn stop(&mut self) {
        self.free(self.kept);
        self.phase = Phase::Stopped;
    }

    /// Frees the bytes before `offset`. An older offset than the last is no news
    /// and changes nothing.
    ///
    /// # Errors
    /// [`RingFault`] when the offset was never written.
    pub fn acknowledge(&mut self, offset: u64) -> Result<(), RingFault> {
        let fault = RingFault { offset, end: self.end() };
        if offset > fault.end {
            return Err(fault);
        }
        let freed = offset.saturating_sub(self.base);
        self.free(usize::try_from(freed).map_err(|_| fault)?);
        Ok(())
    }

    /// What there is at `cursor`, at most `max` bytes of it, or fewer where a piece ends.
    pub fn piece_at(&self, cursor: u64, max: usize) -> Piece<'_> {
        if self.phase == Phase::Stopped {
            return Piece::Stopped;
        }
        if cursor < self.base {
            return Piece::Gap(self.base);
        }
        let mut skip = usize::try_from(cursor - self.base).unwrap_or(usize::MAX);
        for piece in self.pieces.iter().map(Bytes::as_ref).chain([&self.tail[..]]) {
            if let Some(rest @ [_, ..]) = piece.get(skip..) {
                return Piece::Data(&rest[..rest.len().min(max)]);
            }
            skip -= piece.len();
        }
        match self.phase {
            Phase::Finished => Piece::Eof,
            Phase::Open | Phase::Stopped => Piece::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(ring: &OutputRing, mut cursor: u64) -> (Vec<u8>, u64) {
        let began = cursor;
        let mut out = Vec::new();
        while let Piece::Data(bytes) = ring.piece_at(cursor, 3) {
            out.extend(bytes);
            cursor = began + out.len() as u64;
        }
        (out, cursor)
    }

    #[test]
    fn a_full_ring_takes_no_more_until_bytes_are_acknowledged() {
        let mut ring = OutputRing::new(4, WhenFull::Block);
        assert_eq!(ring.offer_copy(b"abcdef"), Some(4));
        assert_eq!(ring.offer_copy(b"ef"), Some(0));
        ring.acknowledge(3).unwrap();
        assert_eq!(ring.offer_copy(b"ef"), Some(2));
        assert_eq!(read_all(&ring, 3).0, b"def");
    }

    #[test]
    fn a_dropping_ring_keeps_the_latest_bytes_and_shows_the_gap() {
        let mut ring = OutputRing::new(4, WhenFull::Drop);
        assert_eq!(ring.offer_copy(b"abc"), Some(3));
        assert_eq!(ring.offer_copy(b"defgh"), Some(5));
        assert_eq!(ring.dropped(), 4);
        assert_eq!(ring.piece_at(0, 9), Piece::Gap(4));
        assert_eq!(read_all(&ring, 4).0, b"efgh");
    }

    #[test]
    fn an_acknowledgement_of_unwritten_bytes_is_refused() {
        let mut ring = OutputRing::default();
        ring.offer_copy(b"abc").unwrap();
        assert_eq!(ring.acknowledge(4), Err(RingFault { offset: 4, end: 3 }));
        ring.acknowledge(2).unwrap();
        ring.acknowledge(1).unwrap();
        assert_eq!(ring.base(), 2);
    }

    #[test]
    fn the_end_comes_after_the_last_byte_and_nothing_is_taken_after_it() {
        let mut ring = OutputRing::default();
        ring.offer_copy(b"ab").unwrap();
        ring.finish();
        assert_eq!(ring.offer_copy(b"c"), None);
        assert_eq!(ring.piece_at(1, 9), Piece::Data(b"b"));
        assert_eq!(ring.piece_at(2, 9), Piece::Eof);
    }

    #[test]
    fn a_stopped_ring_frees_its_bytes_and_refuses_more() {
        let mut ring = OutputRing::default();
        ring.offer_copy(b"ab").unwrap();
        ring.stop();
        assert_eq!((ring.base(), ring.end()), (2, 2));
        assert_eq!(ring.offer_copy(b"c"), None);
        assert_eq!(ring.piece_at(0, 9), Piece::Stopped);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(Vec<u8>),
        Send(usize),
        Acknowledge,
        Reconnect,
    }

    /// A few bytes, or so many that they are kept as they are.
    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![0usize..20, 0..3 * SMALL]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = (any::<u8>(), lengths())
            .prop_map(|(first, length)| (0..length).map(|n| first ^ n.to_le_bytes()[0]).collect());
        prop::collection::vec(
            prop_oneof![
                bytes.prop_map(Step::Write),
                lengths().prop_map(|most| Step::Send(most + 1)),
                Just(Step::Acknowledge),
                Just(Step::Reconnect),
            ],
            0..100,
        )
    }

    proptest! {
        /// The reader's side of the model: what it consumed, and the cursor of a
        /// sender that may lose everything it has sent but not seen acknowledged.
        #[test]
        fn however_often_it_is_resumed_the_reader_gets_every_kept_byte_once_and_in_order(
            steps in steps(), capacity in lengths(), drop in any::<bool>(), copied in any::<bool>(),
        ) {
            let when_full = if drop { WhenFull::Drop } else { WhenFull::Block };
            let capacity = capacity + 1;
            let mut ring = OutputRing::new(capacity, when_full);
            let (mut written, mut consumed) = (Vec::new(), Vec::new());
            let (mut position, mut lost) = (0u64, 0u64);
            let mut in_flight: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
            let mut cursor = 0u64;
            for step in steps {
                match step {
                    Step::Write(bytes) => {
                        let taken = match copied {
                            true => ring.offer_copy(&bytes),
                            false => ring.offer(&mut Bytes::copy_from_slice(&bytes)),
                        }
                        .unwrap();
                        written.extend_from_slice(&bytes[..taken]);
                    }
                    Step::Send(max) => {
                        match ring.piece_at(cursor, max) {
                            Piece::Data(bytes) => {
                                let bytes = bytes.to_vec();
                                let next = cursor + bytes.len() as u64;
                                in_flight.push_back((cursor, bytes));
                                cursor = next;
                            }
                            Piece::Gap(to) => { in_flight.push_back((to, Vec::new())); cursor = to; }
                            Piece::Eof | Piece::Nothing | Piece::Stopped => {}
                        }
                    }
                    Step::Acknowledge => {
                        if let Some((at, bytes)) = in_flight.pop_front() {
                            prop_assert!(at >= position);
                            lost += at - position;
                            position = at + bytes.len() as u64;
                            prop_assert_eq!(&written[usize::try_from(at).unwrap()..][..bytes.len()], &bytes[..]);
                            consumed.extend(bytes);
                            ring.acknowledge(position).unwrap();
                        }
                    }
                    Step::Reconnect => { in_flight.clear(); cursor = position; }
                }
                prop_assert!(ring.end() - ring.base() <= capacity as u64);
                prop_assert_eq!(ring.end(), written.len() as u64);
                prop_assert_eq!(consumed.len() as u64 + lost, position);
            }
            if !drop {
                prop_assert_eq!(lost, 0);
                prop_assert_eq!(&written[..consumed.len()], &consumed[..]);
            }
        }
    }
}
