//! A log's bytes as documents.

use super::frame::{self, Found, Frame, HEADER, Kind, Op};
use std::collections::BTreeMap;
use std::fmt;

/// The number of a commit. The first is 1; 0 is a sandbox without a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a content looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// When it was committed, in nanoseconds since 1970; its file has this time of change.
    pub time: i64,
    /// Its bytes.
    pub len: u64,
    /// Their CRC32C.
    pub sum: u32,
}

impl Print {
    /// The print of `content`, committed at `time`.
    pub fn of(content: &[u8], time: i64) -> Self {
        Self { time, len: content.len() as u64, sum: crc32c::crc32c(content) }
    }
}

/// What a file can be compared with.
pub trait Likeness {
    /// When it was committed, in nanoseconds since 1970.
    fn time(&self) -> i64;
    /// Its bytes.
    fn size(&self) -> u64;
    /// Whether this is its content.
    fn is(&self, content: &[u8]) -> bool;
}

impl Likeness for Print {
    fn time(&self) -> i64 {
        self.time
    }

    fn size(&self) -> u64 {
        self.len
    }

    fn is(&self, content: &[u8]) -> bool {
        Print::of(content, self.time) == *self
    }
}

/// What a document was once, as a log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past<'a> {
    /// Its content, and when it was committed.
    Content(&'a [u8], i64),
    /// What it looked like; its content is in no frame of this log.
    Print(Print),
}

impl Past<'_> {
    /// What it looked like.
    pub fn print(&self) -> Print {
        match self {
            Past::Content(content, time) => Print::of(content, *time),
            Past::Print(print) => *print,
        }
    }
}

impl Likeness for Past<'_> {
    fn time(&self) -> i64 {
        match self {
            Past::Content(_, time) => *time,
            Past::Print(print) => print.time,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Past::Content(content, _) => content.len() as u64,
            Past::Print(print) => print.len,
        }
    }

    fn is(&self, other: &[u8]) -> bool {
        match self {
            Past::Content(content, _) => *content == other,
            Past::Print(print) => print.is(other),
        }
    }
}

/// A document of the newest generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<'a> {
    /// Its content.
    pub content: &'a [u8],
    /// When it was committed, in nanoseconds since 1970.
    pub time: i64,
    /// What it was in earlier frames of this log.
    pub earlier: Vec<Past<'a>>,
}

impl<'a> Kept<'a> {
    /// What it was, and last what it is.
    pub fn history(&self) -> Vec<Past<'a>> {
        let now = Past::Content(self.content, self.time);
        self.earlier.iter().copied().chain([now]).collect()
    }
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// After a whole frame.
    Clean,
    /// In a frame that is not whole: a commit that was under way. Nobody was told of it.
    Torn {
        /// Where it begins.
        at: usize,
    },
    /// In a frame that is not whole, with whole ones behind it: commits that were reported are lost.
    Damaged {
        /// Where it begins.
        at: usize,
        /// The newest generation that is whole somewhere behind it.
        later: Generation,
    },
}

/// Everything a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay<'a> {
    /// The documents, by name.
    pub documents: BTreeMap<&'a str, Kept<'a>>,
    /// Documents that were deleted in this log, and what they were.
    pub deleted: BTreeMap<&'a str, Vec<Past<'a>>>,
    /// The newest whole generation.
    pub generation: Generation,
    /// When it was committed, in nanoseconds since 1970.
    pub time: i64,
    /// Where the next frame goes.
    pub end: usize,
    /// Where the newest snapshot begins, and where it ends.
    pub snapshot: (usize, usize),
    /// How it ends.
    pub tail: Tail,
}

/// Why a log says nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// A later version wrote it.
    Newer(u8),
    /// Not one whole snapshot is in it.
    NoSnapshot,
}

/// Reads a log.
///
/// # Errors
/// When there is nothing in it that this version can read.
pub fn replay(log: &[u8]) -> Result<Replay<'_>, Silence> {
    let mut state: Option<Replay<'_>> = None;
    let mut at = 0;
    let tail = loop {
        match frame::decode(log, at) {
            Found::Frame(frame) if follows(&frame, state.as_ref()) => {
                let next = frame.next;
                state = Some(apply(state, frame, at));
                at = next;
            }
            Found::End if log.get(at..).is_none_or(is_zero) => break Tail::Clean,
            Found::Newer(version) => return Err(Silence::Newer(version)),
            // Zeros with something behind them are no end: a block was lost.
            Found::Frame(_) | Found::Broken | Found::End => {
                let known = state.as_ref().map_or(Generation(0), |state| state.generation);
                break match newest_behind(log, at, known) {
                    Some(later) => Tail::Damaged { at, later },
                    None => Tail::Torn { at },
                };
            }
        }
    };
    let mut state = state.ok_or(Silence::NoSnapshot)?;
    state.tail = tail;
    state.end = at;
    Ok(state)
}

/// Whether a frame continues what was read before it.
fn follows(frame: &Frame<'_>, before: Option<&Replay<'_>>) -> bool {
    match (frame.kind, before) {
        (Kind::Snapshot, None) => true,
        (Kind::Delta, None) => false,
        (Kind::Snapshot | Kind::Delta, Some(before)) => {
            before.generation.0.checked_add(1) == Some(frame.generation.0)
        }
    }
}

fn apply<'a>(before: Option<Replay<'a>>, frame: Frame<'a>, at: usize) -> Replay<'a> {
    let mut state = before.unwrap_or_else(|| Replay {
        documents: BTreeMap::new(),
        deleted: BTreeMap::new(),
        generation: frame.generation,
        time: frame.time,
        end: 0,
        snapshot: (0, 0),
        tail: Tail::Clean,
    });
    let mut past = std::mem::take(&mut state.deleted);
    if frame.kind == Kind::Snapshot {
        state.snapshot = (at, frame.next);
        for (name, kept) in std::mem::take(&mut state.documents) {
            past.insert(name, kept.history());
        }
    }
    for (name, op) in frame.documents {
        if let Op::Was(print) = op {
            past.entry(name).or_default().push(Past::Print(print));
            continue;
        }
        let earlier =
            state.documents.remove(name).map(|kept| kept.history()).or_else(|| past.remove(name));
        match op {
            Op::Put(content, time) => {
                let mut earlier = earlier.unwrap_or_default();
                // A snapshot repeats what had been said.
                earlier.retain(|past| past.time() != time || !past.is(content));
                state.documents.insert(name, Kept { content, time, earlier });
            }
            Op::Delete | Op::Was(_) => {
                past.insert(name, earlier.unwrap_or_default());
            }
        }
    }
    state.deleted = past;
    state.generation = frame.generation;
    state.time = frame.time;
    state
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The newest generation above `known` that is whole behind `at`.
fn newest_behind(log: &[u8], at: usize, known: Generation) -> Option<Generation> {
    let mut newest = None;
    let mut at = at.next_multiple_of(frame::ALIGN);
    while at + HEADER <= log.len() {
        if log[at..at + 4] == frame::MAGIC
            && let Found::Frame(frame) = frame::decode(log, at)
        {
            if frame.generation > known {
                newest = newest.max(Some(frame.generation));
            }
            at = frame.next;
        } else {
            at += frame::ALIGN;
        }
    }
    newest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::frame::encode;

    type Commit<'a> = (Kind, u64, &'a [(&'a str, Option<&'a str>)]);

    fn log(frames: &[Commit<'_>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for (kind, generation, documents) in frames {
            starts.push(bytes.len());
            let time = i64::try_from(*generation).unwrap() * 10;
            let documents = documents.iter().map(|(name, content)| {
                (*name, content.map_or(Op::Delete, |content| Op::Put(content.as_bytes(), time)))
            });
            bytes.extend(encode(*kind, Generation(*generation), time, documents).unwrap());
        }
        bytes.resize(bytes.len() + 100, 0);
        (bytes, starts)
    }

    fn three() -> (Vec<u8>, Vec<usize>) {
        log(&[
            (Kind::Snapshot, 5, &[("a", Some("1")), ("b", Some("1"))]),
            (Kind::Delta, 6, &[("a", Some("2"))]),
            (Kind::Delta, 7, &[("b", None), ("c", Some("3"))]),
        ])
    }

    #[test]
    fn deltas_change_what_the_snapshot_says() {
        let (bytes, _) = three();
        let state = replay(&bytes).unwrap();
        assert_eq!((state.generation, state.time, state.tail), (Generation(7), 70, Tail::Clean));
        assert_eq!(state.documents.keys().copied().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(state.documents["a"].content, b"2");
        assert_eq!(state.documents["a"].earlier, [Past::Content(b"1", 50)]);
        assert_eq!(state.deleted["b"], [Past::Content(b"1", 50)]);
        assert_eq!(state.end, bytes.len() - 100);
    }

    #[test]
    fn a_torn_end_is_the_generation_before() {
        let (bytes, starts) = three();
        for cut in starts[2] + 1..bytes.len() - 100 - 7 {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            let state = replay(&torn).unwrap();
            // A last byte that is zero anyway is not missed.
            if state.generation == Generation(7) {
                assert_eq!(torn, bytes);
                continue;
            }
            assert_eq!(state.generation, Generation(6), "cut at {cut}");
            assert_eq!(state.documents.keys().copied().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(state.end, starts[2]);
        }
    }

    #[test]
    fn damage_in_the_middle_is_told_from_a_torn_end() {
        let (mut bytes, starts) = three();
        bytes[starts[1] + HEADER + 3] ^= 1;
        let state = replay(&bytes).unwrap();
        assert_eq!(state.generation, Generation(5), "the newest before the damage");
        assert_eq!(state.tail, Tail::Damaged { at: starts[1], later: Generation(7) });
    }

    #[test]
    fn a_block_of_zeros_in_the_middle_is_not_taken_for_the_end() {
        let (mut bytes, starts) = three();
        bytes[starts[1]..starts[2]].fill(0);
        let state = replay(&bytes).unwrap();
        assert_eq!(state.generation, Generation(5));
        assert_eq!(state.tail, Tail::Damaged { at: starts[1], later: Generation(7) });
    }

    #[test]
    fn a_log_whose_first_frame_is_damaged_says_nothing() {
        let (mut bytes, _) = three();
        bytes[9] ^= 1;
        assert_eq!(replay(&bytes), Err(Silence::NoSnapshot));
        assert_eq!(replay(&[]), Err(Silence::NoSnapshot));
        assert_eq!(replay(&[0; 4096]), Err(Silence::NoSnapshot));
    }

    #[test]
    fn a_generation_that_is_out_of_order_is_not_believed() {
        let (bytes, _) =
            log(&[(Kind::Snapshot, 5, &[("a", Some("1"))]), (Kind::Delta, 7, &[("a", Some("2"))])]);
        let state = replay(&bytes).unwrap();
        assert_eq!(state.generation, Generation(5));
        assert!(matches!(state.tail, Tail::Damaged { later: Generation(7), .. }));
    }

    #[test]
    fn a_second_snapshot_starts_afresh_and_remembers_prints() {
        let (bytes, starts) = log(&[
            (Kind::Snapshot, 1, &[("a", Some("1")), ("b", Some("1"))]),
            (Kind::Snapshot, 2, &[("a", Some("2"))]),
        ]);
        let state = replay(&bytes).unwrap();
        assert_eq!(state.documents.len(), 1);
        assert_eq!(state.documents["a"].earlier, [Past::Content(b"1", 10)]);
        assert_eq!(state.deleted["b"], [Past::Content(b"1", 10)]);
        assert_eq!(state.snapshot.0, starts[1]);
    }
}
