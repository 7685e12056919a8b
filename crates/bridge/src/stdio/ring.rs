//! The bytes of a stream that its far end has not yet acknowledged.
//!
//! Pure: nothing here waits. Offsets are absolute and never go back.
//!
//! ```text
//!        base                      end = base + bytes.len()
//!   ------|=========================|------------------->
//!    freed   kept: sent or not yet    to be written
//! ```
//!
//! A full ring refuses bytes, as a full pipe does ([`WhenFull::Block`]), or lets
//! the oldest go and so keeps the latest ([`WhenFull::Drop`]). Dropped bytes that
//! the reader never saw appear to it as a gap.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Default size of a ring in bytes.
pub const DEFAULT_RING: usize = 1 << 20;

/// An idle ring gives back memory above this many bytes.
const KEEP: usize = 16 * 1024;

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
    bytes: VecDeque<u8>,
    base: u64,
    capacity: usize,
    when_full: WhenFull,
    phase: Phase,
    dropped: u64,
}

/// What there is to send at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes were appended to the caller's buffer; this many.
    Data(usize),
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
            bytes: VecDeque::new(),
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
        self.base + self.bytes.len() as u64
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

    /// Takes bytes from the writer and says how many: fewer than offered when
    /// the ring is nearly full, 0 when it is full, `None` when nobody wants them
    /// (the stream was stopped, or ended by the writer itself).
    pub fn offer(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.phase != Phase::Open {
            return None;
        }
        let room = self.capacity - self.bytes.len();
        let taken = match self.when_full {
            WhenFull::Block => bytes.len().min(room),
            WhenFull::Drop => bytes.len(),
        };
        let kept = &bytes[taken.saturating_sub(self.capacity)..taken];
        let skipped = taken - kept.len();
        let evicted = (self.bytes.len() + kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..evicted);
        self.base += (evicted + skipped) as u64;
        self.dropped += (evicted + skipped) as u64;
        self.bytes.extend(kept);
        Some(taken)
    }

    /// The writer ends the stream. What is kept still goes out.
    pub fn finish(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Finished;
        }
    }

    /// The reader wants no more: everything kept is freed.
    pub fn stop(&mut self) {
        self.base = self.end();
        self.bytes = VecDeque::new();
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
        self.bytes.drain(..usize::try_from(freed).map_err(|_| fault)?);
        self.base += freed;
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP {
            self.bytes = VecDeque::new();
        }
        Ok(())
    }

    /// What a reader at `cursor` gets next; at most `max` bytes are appended to `out`.
    pub fn piece_at(&self, cursor: u64, max: usize, out: &mut BytesMut) -> Piece {
        if self.phase == Phase::Stopped {
            return Piece::Stopped;
        }
        if cursor < self.base {
            return Piece::Gap(self.base);
        }
        let skip = usize::try_from(cursor - self.base).unwrap_or(usize::MAX);
        if skip >= self.bytes.len() {
            return match self.phase {
                Phase::Finished => Piece::Eof,
                Phase::Open | Phase::Stopped => Piece::Nothing,
            };
        }
        let until = self.bytes.len().min(skip.saturating_add(max));
        let (first, second) = self.bytes.as_slices();
        out.extend_from_slice(&first[skip.min(first.len())..until.min(first.len())]);
        let from = skip.saturating_sub(first.len());
        out.extend_from_slice(&second[from..until.saturating_sub(first.len()).max(from)]);
        Piece::Data(until - skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(ring: &OutputRing, mut cursor: u64) -> (Vec<u8>, u64) {
        let mut out = BytesMut::new();
        while let Piece::Data(n) = ring.piece_at(cursor, 3, &mut out) {
            cursor += n as u64;
        }
        (out.to_vec(), cursor)
    }

    #[test]
    fn a_full_ring_takes_no_more_until_bytes_are_acknowledged() {
        let mut ring = OutputRing::new(4, WhenFull::Block);
        assert_eq!(ring.offer(b"abcdef"), Some(4));
        assert_eq!(ring.offer(b"ef"), Some(0));
        ring.acknowledge(3).unwrap();
        assert_eq!(ring.offer(b"ef"), Some(2));
        assert_eq!(read_all(&ring, 3).0, b"def");
    }

    #[test]
    fn a_dropping_ring_keeps_the_latest_bytes_and_shows_the_gap() {
        let mut ring = OutputRing::new(4, WhenFull::Drop);
        assert_eq!(ring.offer(b"abc"), Some(3));
        assert_eq!(ring.offer(b"defgh"), Some(5));
        assert_eq!(ring.dropped(), 4);
        assert_eq!(ring.piece_at(0, 9, &mut BytesMut::new()), Piece::Gap(4));
        assert_eq!(read_all(&ring, 4).0, b"efgh");
    }

    #[test]
    fn an_acknowledgement_of_unwritten_bytes_is_refused() {
        let mut ring = OutputRing::default();
        ring.offer(b"abc").unwrap();
        assert_eq!(ring.acknowledge(4), Err(RingFault { offset: 4, end: 3 }));
        ring.acknowledge(2).unwrap();
        ring.acknowledge(1).unwrap();
        assert_eq!(ring.base(), 2);
    }

    #[test]
    fn the_end_comes_after_the_last_byte_and_nothing_is_taken_after_it() {
        let mut ring = OutputRing::default();
        ring.offer(b"ab").unwrap();
        ring.finish();
        assert_eq!(ring.offer(b"c"), None);
        assert_eq!(ring.piece_at(1, 9, &mut BytesMut::new()), Piece::Data(1));
        assert_eq!(ring.piece_at(2, 9, &mut BytesMut::new()), Piece::Eof);
    }

    #[test]
    fn a_stopped_ring_frees_its_bytes_and_refuses_more() {
        let mut ring = OutputRing::default();
        ring.offer(b"ab").unwrap();
        ring.stop();
        assert_eq!((ring.base(), ring.end()), (2, 2));
        assert_eq!(ring.offer(b"c"), None);
        assert_eq!(ring.piece_at(0, 9, &mut BytesMut::new()), Piece::Stopped);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(Vec<u8>),
        Send(usize),
        Acknowledge,
        Reconnect,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20).prop_map(Step::Write),
                (1usize..9).prop_map(Step::Send),
                Just(Step::Acknowledge),
                Just(Step::Reconnect),
            ],
            0..200,
        )
    }

    proptest! {
        /// The reader's side of the model: what it consumed, and the cursor of a
        /// sender that may lose everything it has sent but not seen acknowledged.
        #[test]
        fn however_often_it_is_resumed_the_reader_gets_every_kept_byte_once_and_in_order(
            steps in steps(), capacity in 1usize..24, drop in any::<bool>(),
        ) {
            let when_full = if drop { WhenFull::Drop } else { WhenFull::Block };
            let mut ring = OutputRing::new(capacity, when_full);
            let (mut written, mut consumed) = (Vec::new(), Vec::new());
            let (mut position, mut lost) = (0u64, 0u64);
            let mut in_flight: VecDeque<(u64, BytesMut)> = VecDeque::new();
            let mut cursor = 0u64;
            for step in steps {
                match step {
                    Step::Write(bytes) => {
                        let taken = ring.offer(&bytes).unwrap();
                        written.extend_from_slice(&bytes[..taken]);
                    }
                    Step::Send(max) => {
                        let mut out = BytesMut::new();
                        match ring.piece_at(cursor, max, &mut out) {
                            Piece::Data(n) => {
                                in_flight.push_back((cursor, out));
                                cursor += n as u64;
                            }
                            Piece::Gap(to) => { in_flight.push_back((to, BytesMut::new())); cursor = to; }
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
