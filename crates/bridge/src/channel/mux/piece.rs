//! A piece of what a stream has received: bytes of our own, or a slot of the area.

use crate::channel::area::Slot;
use std::collections::VecDeque;
use std::ops::Range;

/// See the module. What is taken from the front is gone.
#[derive(Debug)]
pub(crate) enum Piece {
    /// What came through the port, one frame after the other.
    Bytes(VecDeque<u8>),
    /// What the host has placed. The slot goes home when this is dropped.
    Slot { slot: Slot, range: Range<usize> },
}

impl Default for Piece {
    fn default() -> Self {
        Piece::Bytes(VecDeque::new())
    }
}

impl Piece {
    pub(crate) fn len(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Slot { range, .. } => range.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, in two parts, of which the second is empty if the first is.
    pub(crate) fn slices(&self) -> (&[u8], &[u8]) {
        match self {
            Piece::Bytes(bytes) => bytes.as_slices(),
            Piece::Slot { slot, range } => {
                (slot.bytes().get(range.clone()).unwrap_or_default(), &[])
            }
        }
    }

    /// Drops the first `n` bytes, or all if there are fewer.
    pub(crate) fn advance(&mut self, n: usize) {
        match self {
            Piece::Bytes(bytes) => {
                bytes.drain(..n.min(bytes.len()));
            }
            Piece::Slot { range, .. } => range.start = (range.start + n).min(range.end),
        }
    }
}
