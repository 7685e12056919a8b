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
//! All numbers are little endian. The checksum is CRC32C over the first 16 bytes and the payload's
//! [`digest`], so a record torn anywhere cannot pass for whole. A reader that meets anything else
//! than a record skips byte by byte to the next one and says so ([`Found::Garbage`]).

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
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
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

    /// Takes what lies in front.
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
