//! One commit as bytes.
//!
//! ```text
//!   0   4  "CRLG"
//!   4   1  version of the format, 1
//!   5   1  kind: 1 snapshot, 2 delta
//!   6   2  zero
//!   8   8  generation
//!  16   8  time of the commit, nanoseconds since 1970
//!  24   4  length of the body
//!  28   4  CRC32C of the 28 bytes above
//!  32   n  body: documents, one after another
//!      4  CRC32C of all of the above
//!      .  zeros up to a multiple of 8
//!
//!  document:  op (1 put, 2 delete, 3 was) · u16 length of name · u32 length of content
//!             · i64 time it was first committed so · name · content
//! ```
//!
//! All numbers are little-endian. The first 32 bytes keep this layout in every later version, so that
//! a newer log is known as such.

use super::replay::{Generation, Print};

/// What every frame begins with.
pub const MAGIC: [u8; 4] = *b"CRLG";
/// The version of the format that is written.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER: usize = 32;
/// The most bytes of a body; a larger length in a header is damage.
pub const MAX_BODY: usize = 256 << 20;
/// Frames begin at multiples of this many bytes.
pub const ALIGN: usize = 8;

/// Whether a frame stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All documents.
    Snapshot,
    /// What changed since the frame before.
    Delta,
}

/// What a commit does to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// This is its content from now on, and since when: a snapshot repeats older ones.
    Put(&'a [u8], i64),
    /// It is gone.
    Delete,
    /// It once looked so, and its file may still. Stands before what the document is now.
    Was(Print),
}

/// A frame as it was found in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whether it stands for itself.
    pub kind: Kind,
    /// The number of the commit.
    pub generation: Generation,
    /// When it was made, in nanoseconds since 1970.
    pub time: i64,
    /// The documents it is about.
    pub documents: Vec<(&'a str, Op<'a>)>,
    /// Where the next frame begins.
    pub next: usize,
}

/// What is at a place in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole frame.
    Frame(Frame<'a>),
    /// Nothing: the log ends here.
    End,
    /// Something that is no whole frame.
    Broken,
    /// The beginning of a frame of a later version.
    Newer(u8),
}

/// A commit as the bytes of a frame.
pub fn encode<'a>(
    kind: Kind,
    generation: Generation,
    time: i64,
    documents: impl IntoIterator<Item = (&'a str, Op<'a>)>,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    for (name, op) in documents {
        let mut print = [0; 12];
        let (code, content, since) = match op {
            Op::Put(content, since) => (1, content, since),
            Op::Delete => (2, &[][..], time),
            Op::Was(was) => {
                print[..8].copy_from_slice(&was.len.to_le_bytes());
                print[8..].copy_from_slice(&was.sum.to_le_bytes());
                (3, &print[..], was.time)
            }
        };
        bytes.push(code);
        bytes.extend(u16::try_from(name.len()).ok()?.to_le_bytes());
        bytes.extend(u32::try_from(content.len()).ok()?.to_le_bytes());
        bytes.extend(since.to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(content);
    }
    let body = bytes.len() - HEADER;
    if body > MAX_BODY {
        return None;
    }
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION;
    bytes[5] = match kind {
        Kind::Snapshot => 1,
        Kind::Delta => 2,
    };
    bytes[8..16].copy_from_slice(&generation.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&time.to_le_bytes());
    bytes[24..28].copy_from_slice(&u32::try_from(body).ok()?.to_le_bytes());
    let header_sum = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&header_sum.to_le_bytes());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    Some(bytes)
}

/// What is at `at` in a log.
pub fn decode(log: &[u8], at: usize) -> Found<'_> {
    let rest = log.get(at..).unwrap_or_default();
    let Some(header) = rest.first_chunk::<HEADER>() else {
        return if rest.iter().all(|byte| *byte == 0) { Found::End } else { Found::Broken };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Found::End;
    }
    let u32_at =
        |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let u64_at = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&rest[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    if header[0..4] != MAGIC || u32_at(28) != crc32c::crc32c(&header[..28]) {
        return Found::Broken;
    }
    if header[4] > VERSION {
        return Found::Newer(header[4]);
    }
    let kind = match header[5] {
        1 => Kind::Snapshot,
        2 => Kind::Delta,
        _ => return Found::Broken,
    };
    let body = u32_at(24) as usize;
    let end = HEADER + body;
    if body > MAX_BODY || rest.len() < end + 4 || u32_at(end) != crc32c::crc32c(&rest[..end]) {
        return Found::Broken;
    }
    let Some(documents) = documents(&rest[HEADER..end]) else { return Found::Broken };
    Found::Frame(Frame {
        kind,
        generation: Generation(u64_at(8)),
        time: i64::from_le_bytes(u64_at(16).to_le_bytes()),
        documents,
        next: at + (end + 4).next_multiple_of(ALIGN),
    })
}

fn documents(mut body: &[u8]) -> Option<Vec<(&str, Op<'_>)>> {
    let mut documents = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_first_chunk::<15>()?;
        let name_len = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let len = u32::from_le_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut since = [0; 8];
        since.copy_from_slice(&head[7..]);
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (content, rest) = rest.split_at_checked(len)?;
        let op = match head[0] {
            1 => Op::Put(content, i64::from_le_bytes(since)),
            2 => Op::Delete,
            3 => Op::Was(print(content, i64::from_le_bytes(since))?),
            _ => return None,
        };
        documents.push((std::str::from_utf8(name).ok()?, op));
        body = rest;
    }
    Some(documents)
}

fn print(content: &[u8], time: i64) -> Option<Print> {
    let (len, sum) = content.split_first_chunk::<8>()?;
    let sum: [u8; 4] = sum.try_into().ok()?;
    Some(Print { time, len: u64::from_le_bytes(*len), sum: u32::from_le_bytes(sum) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let documents =
            [("persist.json", Op::Put(&b"{}\n"[..], 40)), ("c1/persist.json", Op::Delete)];
        encode(Kind::Delta, Generation(7), 42, documents).unwrap()
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let bytes = sample();
        let Found::Frame(frame) = decode(&bytes, 0) else { panic!("no frame") };
        assert_eq!((frame.kind, frame.generation, frame.time), (Kind::Delta, Generation(7), 42));
        assert_eq!(frame.documents[0], ("persist.json", Op::Put(b"{}\n", 40)));
        assert_eq!(frame.documents[1], ("c1/persist.json", Op::Delete));
        assert_eq!(frame.next, bytes.len());
        assert_eq!(decode(&bytes, frame.next), Found::End);
    }

    #[test]
    fn every_single_bit_of_a_frame_is_guarded() {
        let whole = sample();
        let Found::Frame(frame) = decode(&whole, 0) else { panic!("no frame") };
        // Past the second sum are only zeros that fill up.
        let guarded = whole.len() - 7;
        for bit in 0..guarded * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = decode(&bytes, 0);
            assert!(found == Found::Broken || found == Found::Frame(frame.clone()), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_no_frame() {
        let whole = sample();
        for len in 1..whole.len() - 7 {
            assert_eq!(decode(&whole[..len], 0), Found::Broken, "cut after {len}");
        }
    }

    #[test]
    fn a_frame_of_a_later_version_is_told_from_damage() {
        let mut bytes = sample();
        bytes[4] = 2;
        assert_eq!(decode(&bytes, 0), Found::Broken, "its sum is wrong");
        let sum = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(&bytes, 0), Found::Newer(2));
    }

    proptest! {
        #[test]
        fn any_documents_come_back(
            docs in proptest::collection::vec(("[a-z/.]{0,20}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50))), 0..6),
            generation: u64, time: i64,
        ) {
            let ops: Vec<(&str, Op<'_>)> = docs
                .iter()
                .map(|(name, content)| {
                    let op = content.as_deref().map_or(Op::Delete, |content| Op::Put(content, time));
                    (name.as_str(), op)
                })
                .collect();
            let bytes = encode(Kind::Snapshot, Generation(generation), time, ops.clone()).unwrap();
            let Found::Frame(frame) = decode(&bytes, 0) else { panic!("no frame") };
            prop_assert_eq!(frame.documents, ops);
            prop_assert_eq!((frame.generation.0, frame.time), (generation, time));
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..220) {
            let _ = decode(&bytes, at);
        }
    }
}
