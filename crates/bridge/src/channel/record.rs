//! Records: what travels on a virtio-serial port.
//!
//! A port is a byte stream that lies a little. QEMU drops the tail of what a dying client sent,
//! keeps what the guest had not yet read, and hands both to the next client without a mark between
//! them. So every byte travels in a record that names its session and proves itself:
//!
//! ```text
//! 0      4          12     16        20
//! magic | session  | len  | checksum | payload (len bytes, at most 64 KiB)
//! ```
//!
//! All numbers are little endian. The checksum is CRC32C over the first 16 bytes and a digest of the
//! payload, so a record torn anywhere cannot pass for whole. CRC32C over the payload itself would be
//! the obvious choice, but an emulated CPU computes it bit by bit: some 50 MB/s, where the digest's
//! additions run at 3 GB/s. A reader that meets anything else than a record skips byte by byte
//! to the next one and says so ([`Found::Garbage`]).

use std::io;

/// The first four bytes of every record.
pub const MAGIC: [u8; 4] = [0xC0, 0x7A, 0xC1, 0xE5];
/// Bytes before the payload.
pub const HEADER: usize = 20;
/// The most bytes a payload may have.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The most bytes a record may have.
pub const MAX_RECORD: usize = HEADER + MAX_PAYLOAD;

/// Says which records belong together. Records of another session are not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Carried by the records that are exchanged before there is a session.
    pub const NONE: SessionId = SessionId(0);
}

/// Completes a record in place: `record` is [`HEADER`] bytes of room followed by the payload.
///
/// # Errors
/// `InvalidInput` when the payload is longer than [`MAX_PAYLOAD`] or there is no room for a header.
pub fn seal(record: &mut [u8], session: SessionId) -> io::Result<()> {
    let Some((header, payload)) = record.split_at_mut_checked(HEADER) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no room for a record's header"));
    };
    let len = match u32::try_from(payload.len()) {
        Ok(len) if payload.len() <= MAX_PAYLOAD => len,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "record payload too long")),
    };
    header[..4].copy_from_slice(&MAGIC);
    header[4..12].copy_from_slice(&session.0.to_le_bytes());
    header[12..16].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(&header[..16], payload);
    header[16..].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), &digest(payload).to_le_bytes())
}

/// A word that depends on every word of the payload and its place: two running sums, and the sums of
/// those. Only additions, and nothing an optimiser has to see through: this is the one loop over all
/// bytes, and emulators are slow at most vector instructions and at every call.
fn digest(payload: &[u8]) -> u64 {
    let (blocks, rest) = payload.as_chunks::<16>();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);

    let (mut even, mut odd, mut evens, mut odds) = (0u64, 0u64, 0u64, 0u64);
    for block in blocks {
        let (first, second) = words(*block);
        even = even.wrapping_add(first);
        evens = evens.wrapping_add(even);
        odd = odd.wrapping_add(second);
        odds = odds.wrapping_add(odd);
    }
    let (first, second) = words(last);
    // Each step is one to one; the factor spreads a bit upwards, the turn brings it down again.
    [even, odd, evens, odds, first, second].iter().fold(0u64, |digest, sum| {
        (digest ^ sum).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
    })
}

#[inline(always)]
fn words(block: [u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(block);
    #[allow(clippy::cast_possible_truncation)] // the lower half, then the upper
    (both as u64, (both >> 64) as u64)
}

/// What lies at the front of the bytes received so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Nothing yet: read more.
    Incomplete,
    /// A whole record.
    Record {
        /// The session it belongs to.
        session: SessionId,
        /// Its payload.
        payload: &'a [u8],
    },
    /// This many bytes were no record and have been skipped.
    Garbage(usize),
}

enum Verdict {
    Incomplete,
    Record { session: SessionId, len: usize },
    Garbage(usize),
}

fn judge(bytes: &[u8]) -> Verdict {
    let start = bytes.len().min(MAGIC.len());
    if bytes[..start] != MAGIC[..start] {
        return Verdict::Garbage(next_start(bytes));
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Verdict::Incomplete;
    };
    let (session, len, sum) = read_header(header);
    if len > MAX_PAYLOAD {
        return Verdict::Garbage(next_start(bytes));
    }
    let Some(payload) = rest.get(..len) else {
        return Verdict::Incomplete;
    };
    if checksum(&header[..16], payload) != sum {
        return Verdict::Garbage(next_start(bytes));
    }
    Verdict::Record { session, len }
}

fn read_header(header: &[u8; HEADER]) -> (SessionId, usize, u32) {
    let [_, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    (
        SessionId(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
        usize::try_from(len).unwrap_or(usize::MAX),
        u32::from_le_bytes([c0, c1, c2, c3]),
    )
}

/// Where, after the first byte, a record could begin. A magic cut off by the end counts.
fn next_start(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(ahead) = bytes.get(at..).and_then(|b| b.iter().position(|b| *b == MAGIC[0])) {
        at += ahead;
        let n = (bytes.len() - at).min(MAGIC.len());
        if bytes[at..at + n] == MAGIC[..n] {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

/// The receive buffer of a port: fixed in size, it takes bytes as they come and gives records.
#[derive(Debug)]
pub struct Intake {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Intake {
    fn default() -> Self {
        Self::new()
    }
}

impl Intake {
    /// Twice the largest record, and then some, so that one can be read while another is cut.
    const SIZE: usize = 4 * MAX_PAYLOAD;
    /// With less free space than this, what is left is moved to the front.
    const LEAST_SPACE: usize = MAX_PAYLOAD / 2;

    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Intake { bytes: vec![0; Self::SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Forgets everything received.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where to read into; never empty as long as [`Intake::next`] is called until it says
    /// [`Found::Incomplete`].
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.clear();
        } else if self.bytes.len() - self.end < Self::LEAST_SPACE {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Says that `n` bytes were read into [`Intake::space`].
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// The bytes received and not yet used.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `n` pending bytes.
    pub fn skip(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Takes what lies in front. It lends from the buffer, as no iterator can.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Found<'_> {
        if self.start == self.end {
            return Found::Incomplete;
        }
        match judge(self.pending()) {
            Verdict::Incomplete => Found::Incomplete,
            Verdict::Garbage(n) => {
                self.skip(n);
                Found::Garbage(n)
            }
            Verdict::Record { session, len } => {
                let at = self.start + HEADER;
                self.start = at + len;
                Found::Record { session, payload: &self.bytes[at..at + len] }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(session: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(payload);
        seal(&mut bytes, SessionId(session)).unwrap();
        bytes
    }

    /// Feeds bytes in pieces; the payloads found, and the number of bytes skipped.
    fn scan(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, usize) {
        let mut intake = Intake::new();
        let (mut payloads, mut skipped) = (Vec::new(), 0);
        for mut part in bytes.chunks(piece) {
            while !part.is_empty() {
                let space = intake.space();
                let n = space.len().min(part.len());
                space[..n].copy_from_slice(&part[..n]);
                intake.filled(n);
                part = &part[n..];
                loop {
                    match intake.next() {
                        Found::Incomplete => break,
                        Found::Garbage(n) => skipped += n,
                        Found::Record { payload, .. } => payloads.push(payload.to_vec()),
                    }
                }
            }
        }
        (payloads, skipped)
    }

    #[test]
    fn a_record_is_laid_out_as_the_page_says() {
        let bytes = record(0x0102_0304_0506_0708, b"abc");
        assert_eq!(bytes[..4], MAGIC);
        assert_eq!(bytes[4..12], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[12..16], [3, 0, 0, 0]);
        assert_eq!(bytes[HEADER..], *b"abc");
    }

    #[test]
    fn a_payload_too_long_is_not_sealed() {
        assert!(seal(&mut vec![0; MAX_RECORD + 1], SessionId(1)).is_err());
        assert!(seal(&mut vec![0; MAX_RECORD], SessionId(1)).is_ok());
        assert!(seal(&mut [0; HEADER - 1], SessionId(1)).is_err());
    }

    #[test]
    fn zeros_end_a_torn_record_wherever_it_is_torn() {
        let whole = record(7, &[0; 300]);
        for cut in 0..whole.len() {
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(cut + MAX_RECORD, 0);
            bytes.extend_from_slice(&record(8, b"next"));
            let (payloads, _) = scan(&bytes, 4096);
            // Torn within the zeros at its end, it is whole again.
            let expected: &[&[u8]] = if cut >= HEADER { &[&[0; 300], b"next"] } else { &[b"next"] };
            assert_eq!(payloads, expected, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_went_in(
            payloads: Vec<Vec<u8>>, session: u64, piece in 1usize..9000
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|p| record(session, p)).collect();
            prop_assert_eq!(scan(&bytes, piece), (payloads, 0));
        }

        #[test]
        fn a_torn_record_is_skipped(
            payload in proptest::collection::vec(1u8.., 1..2000), cut: prop::sample::Index
        ) {
            let whole = record(7, &payload);
            let mut bytes = whole[..cut.index(whole.len())].to_vec();
            bytes.resize(bytes.len() + MAX_RECORD, 0);
            let garbage = bytes.len();
            bytes.extend_from_slice(&record(8, b"next"));
            prop_assert_eq!(scan(&bytes, 4096), (vec![b"next".to_vec()], garbage));
        }

        #[test]
        fn any_changed_bit_is_noticed(payload: Vec<u8>, at: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = record(7, &payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (payloads, _) = scan(&bytes, 4096);
            prop_assert!(payloads.is_empty());
        }

        #[test]
        fn noise_between_records_is_skipped(
            noise in proptest::collection::vec(0xC0u8..0xC2, 0..500), piece in 1usize..500
        ) {
            let mut bytes = record(1, b"before");
            bytes.extend_from_slice(&noise);
            bytes.extend_from_slice(&record(1, b"after"));
            let (payloads, skipped) = scan(&bytes, piece);
            prop_assert_eq!(payloads, vec![b"before".to_vec(), b"after".to_vec()]);
            prop_assert_eq!(skipped, noise.len());
        }
    }
}
