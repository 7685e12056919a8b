//! The receiving side of a stream's flow control.
//!
//! A sender may have no more bytes under way than the receiver has room for. Every stream starts
//! with [`BASE_WINDOW`]; a stream that is read gets a larger window out of a pool which all streams
//! of a session share, so what a session can be made to buffer is bounded: streams times base, plus
//! the pool. At any time
//!
//! ```text
//! window == open (the sender may still send) + waiting (not yet read) + owed (read, not yet said)
//! ```

use super::piece::Piece;
use crate::channel::area::Slot;
use std::collections::VecDeque;
use std::ops::Range;
use tokio::io::ReadBuf;

/// Bytes a sender may send before it hears anything from the receiver.
pub const BASE_WINDOW: u32 = 8 * 1024;

/// Emptied queues kept for the next stream that receives: fresh memory is dear in an emulated guest.
const SPARES: usize = 2;

/// What the streams of a session share: window beyond the base of each, and memory to receive into.
#[derive(Debug)]
pub struct Pool {
    left: u32,
    spares: Vec<VecDeque<u8>>,
}

impl Pool {
    /// A pool of `bytes`.
    pub fn new(bytes: u32) -> Self {
        Pool { left: bytes, spares: Vec::new() }
    }

    /// At most `wish`, and never more than a third of what is left, so that some is left for the
    /// next.
    fn take(&mut self, wish: u32) -> u32 {
        let given = wish.min(self.left / 3);
        self.left -= given;
        given
    }

    /// What has not been given out.
    #[cfg(test)]
    pub fn left(&self) -> u32 {
        self.left
    }

    fn give_back(&mut self, bytes: u32) {
        self.left += bytes;
    }

    /// Keeps the memory of a piece that has been read, if it is worth it.
    pub fn keep(&mut self, piece: Piece) {
        // A slot goes home.
        let Piece::Bytes(mut queue) = piece else { return };
        if self.spares.len() < SPARES && queue.capacity() > BASE_WINDOW as usize {
            queue.clear();
            self.spares.push(queue);
        }
    }
}

/// The sender sent more than it was allowed to.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// What a stream has received, and what it may receive.
#[derive(Debug)]
pub struct Inflow {
    waiting: VecDeque<Piece>,
    taken: u32,
    open: u32,
    owed: u32,
    window: u32,
}

impl Inflow {
    /// Nothing received, a base window open.
    pub fn new() -> Self {
        Inflow {
            waiting: VecDeque::new(),
            taken: 0,
            open: BASE_WINDOW,
            owed: 0,
            window: BASE_WINDOW,
        }
    }

    /// Takes bytes in.
    pub fn receive(&mut self, bytes: &[u8], pool: &mut Pool) -> Result<(), Overrun> {
        self.count(bytes.len())?;
        if let Some(Piece::Bytes(last)) = self.waiting.back_mut() {
            last.extend(bytes);
            return Ok(());
        }
        let mut queue = match bytes.len() > BASE_WINDOW as usize {
            true => pool.spares.pop().unwrap_or_default(),
            false => VecDeque::new(),
        };
        queue.extend(bytes);
        self.waiting.push_back(Piece::Bytes(queue));
        Ok(())
    }

    /// Takes bytes in that lie in a slot.
    pub fn receive_slot(&mut self, slot: Slot, range: Range<usize>) -> Result<(), Overrun> {
        self.count(range.len())?;
        if !range.is_empty() {
            self.waiting.push_back(Piece::Slot { slot, range });
        }
        Ok(())
    }

    fn count(&mut self, len: usize) -> Result<(), Overrun> {
        let len = u32::try_from(len).map_err(|_| Overrun)?;
        self.open = self.open.checked_sub(len).ok_or(Overrun)?;
        Ok(())
    }

    /// Whether nothing waits to be read.
    pub fn is_empty(&self) -> bool {
        self.waiting.iter().all(Piece::is_empty)
    }

    /// Bytes that wait to be read.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.iter().map(Piece::len).sum()
    }

    /// Copies out as much as fits and counts it as read.
    pub fn read(&mut self, into: &mut ReadBuf<'_>, pool: &mut Pool) {
        let before = into.remaining();
        while into.remaining() > 0
            && let Some(piece) = self.waiting.front_mut()
        {
            let (first, second) = piece.slices();
            let mut n = 0;
            for part in [first, second] {
                let len = part.len().min(into.remaining());
                into.put_slice(&part[..len]);
                n += len;
            }
            piece.advance(n);
            if piece.is_empty()
                && let Some(spent) = self.waiting.pop_front()
            {
                pool.keep(spent);
            }
        }
        self.owed += u32::try_from(before - into.remaining()).unwrap_or(u32::MAX);
    }

    /// Takes the first piece of what waits, which is empty if nothing does. It counts as read only when
    /// [`Inflow::release`] says so.
    pub fn take(&mut self) -> Piece {
        let taken = self.waiting.pop_front().unwrap_or_default();
        self.taken += u32::try_from(taken.len()).unwrap_or(u32::MAX);
        taken
    }

    /// Counts `n` taken bytes as read.
    pub fn release(&mut self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.taken);
        self.taken -= n;
        self.owed += n;
    }

    /// Whether the sender should hear soon that there is room again.
    pub fn wants_update(&self) -> bool {
        self.owed >= self.window / 2
    }

    /// The credit to send now; lets the window grow towards `most` as far as the pool allows.
    pub fn update(&mut self, most: u32, pool: &mut Pool) -> u32 {
        let growth = pool.take(most.saturating_sub(self.window));
        self.window += growth;
        let credit = self.owed + growth;
        self.owed = 0;
        self.open += credit;
        credit
    }

    /// Gives what it had from the pool back.
    pub fn close(&mut self, pool: &mut Pool) {
        pool.give_back(self.window - BASE_WINDOW);
        self.window = BASE_WINDOW;
        self.waiting.drain(..).for_each(|piece| pool.keep(piece));
    }
}
