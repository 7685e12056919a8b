//! Frames: what a record of a session carries.
//!
//! A record's payload is any number of small frames of 16 bytes each, or one data frame, which
//! takes the rest of the record:
//!
//! ```text
//! kind u8 | zeros | stream u32 | value u64          small frame
//! FEW u8 | number u8 | zeros | stream u32 | bytes   small frame with up to 8 bytes of data
//! DATA u8 | zeros | stream u32 | bytes …            data frame
//! ```

use crate::channel::area::Place;
use thiserror::Error;

/// Bytes before the data of a data frame.
pub const DATA_HEAD: usize = 8;
/// Bytes of a small frame.
pub const SMALL: usize = 16;

const DATA: u8 = 0x01;
const OPEN: u8 = 0x02;
const ACCEPT: u8 = 0x03;
const WINDOW: u8 = 0x04;
const EOF: u8 = 0x05;
const STOP: u8 = 0x06;
const RESET: u8 = 0x07;
const ACK: u8 = 0x08;
const READY: u8 = 0x09;
const PLACED: u8 = 0x0A;
const GRANT: u8 = 0x0B;
const FEW: u8 = 0x0C;

/// One stream of a session. The host opens odd ones, the guest even ones; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// One message about a stream, or about the session as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Bytes, within the window.
    Data(StreamId, &'a [u8]),
    /// Begins a stream to a port.
    Open(StreamId, u32),
    /// Somebody serves the stream now.
    Accept(StreamId),
    /// The receiver can take this many bytes more.
    Window(StreamId, u32),
    /// The sender has sent everything.
    Eof(StreamId),
    /// The sender of this frame reads no more; what it sent stays good.
    Stop(StreamId),
    /// The stream is broken: what was not yet read is lost.
    Reset(StreamId),
    /// All that the host has received in this session, in units of link cost.
    Ack(u64),
    /// The host's first word: the session stands. True: it reads what the guest places in the area.
    Ready(bool),
    /// Bytes, within the window, that lie in the area.
    Placed(StreamId, Place),
    /// The host may fill this slot of the area.
    Grant(u32),
    /// A few bytes, within the window.
    Few(StreamId, Few),
}

/// As many bytes as fit in a small frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Few {
    bytes: [u8; Few::MOST],
    len: u8,
}

impl Few {
    /// How many they can be.
    pub const MOST: usize = 8;

    /// The first of these bytes, as many as can be.
    #[must_use]
    pub fn first_of(data: &[u8]) -> Self {
        let n = data.len().min(Self::MOST);
        let mut bytes = [0; Self::MOST];
        bytes[..n].copy_from_slice(&data[..n]);
        Few { bytes, len: u8::try_from(n).unwrap_or_default() }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len).min(Self::MOST)]
    }
}

/// Why a payload is not a sequence of frames.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The last frame is cut off.
    #[error("a frame is cut off after {0} bytes")]
    Short(usize),
    /// No such kind.
    #[error("unknown kind of frame {0:#04x}")]
    Kind(u8),
    /// A number does not fit its field.
    #[error("value {value} of a frame of kind {kind:#04x} is out of range")]
    Value {
        /// The kind of the frame.
        kind: u8,
        /// Its value.
        value: u64,
    },
}

impl Frame<'_> {
    /// Appends a small frame to a payload. Data frames are written in place, see [`data_head`].
    pub fn put(self, payload: &mut Vec<u8>) {
        let (kind, stream, value) = match self {
            Frame::Data(stream, bytes) => {
                payload.extend_from_slice(&data_head(stream));
                payload.extend_from_slice(bytes);
                return;
            }
            Frame::Few(stream, few) => {
                let mut head = head(FEW, stream);
                head[1] = few.len;
                payload.extend_from_slice(&head);
                payload.extend_from_slice(&few.bytes);
                return;
            }
            Frame::Open(stream, port) => (OPEN, stream, u64::from(port)),
            Frame::Accept(stream) => (ACCEPT, stream, 0),
            Frame::Window(stream, credit) => (WINDOW, stream, u64::from(credit)),
            Frame::Eof(stream) => (EOF, stream, 0),
            Frame::Stop(stream) => (STOP, stream, 0),
            Frame::Reset(stream) => (RESET, stream, 0),
            Frame::Ack(cost) => (ACK, StreamId(0), cost),
            Frame::Ready(has_area) => (READY, StreamId(0), u64::from(has_area)),
            Frame::Placed(stream, place) => (PLACED, stream, place_value(place)),
            Frame::Grant(slot) => (GRANT, StreamId(0), u64::from(slot)),
        };
        payload.extend_from_slice(&head(kind, stream));
        payload.extend_from_slice(&value.to_le_bytes());
    }
}

/// The bytes before the data of a data frame.
#[must_use]
pub fn data_head(stream: StreamId) -> [u8; DATA_HEAD] {
    head(DATA, stream)
}

fn head(kind: u8, stream: StreamId) -> [u8; DATA_HEAD] {
    let [a, b, c, d] = stream.0.to_le_bytes();
    [kind, 0, 0, 0, a, b, c, d]
}

/// What a place has for a number of bytes.
const MASK: u32 = (1 << 24) - 1;

fn place_value(place: Place) -> u64 {
    u64::from(place.slot) << 48 | u64::from(place.from & MASK) << 24 | u64::from(place.len & MASK)
}

#[allow(clippy::cast_possible_truncation)] // 16 bits, 24 bits, 24 bits
fn place(value: u64) -> Place {
    Place {
        slot: (value >> 48) as u16,
        from: (value >> 24) as u32 & MASK,
        len: value as u32 & MASK,
    }
}

/// The first frame of a payload and what follows it.
///
/// # Errors
/// [`FrameError`] when the payload does not begin with a whole, known frame.
pub fn parse(payload: &[u8]) -> Result<(Frame<'_>, &[u8]), FrameError> {
    let short = FrameError::Short(payload.len());
    let Some((&[kind, number, _, _, a, b, c, d], rest)) = payload.split_first_chunk::<DATA_HEAD>()
    else {
        return Err(short);
    };
    let stream = StreamId(u32::from_le_bytes([a, b, c, d]));
    if kind == DATA {
        return Ok((Frame::Data(stream, rest), &[]));
    }
    let Some((value, rest)) = rest.split_first_chunk::<8>() else {
        return Err(short);
    };
    if kind == FEW {
        if usize::from(number) > Few::MOST {
            return Err(FrameError::Value { kind, value: number.into() });
        }
        return Ok((Frame::Few(stream, Few { bytes: *value, len: number }), rest));
    }
    let value = u64::from_le_bytes(*value);
    let narrow = || u32::try_from(value).map_err(|_| FrameError::Value { kind, value });
    let frame = match kind {
        OPEN => Frame::Open(stream, narrow()?),
        ACCEPT => Frame::Accept(stream),
        WINDOW => Frame::Window(stream, narrow()?),
        EOF => Frame::Eof(stream),
        STOP => Frame::Stop(stream),
        RESET => Frame::Reset(stream),
        ACK => Frame::Ack(value),
        // A host without an area says nothing about it.
        READY => Frame::Ready(value != 0),
        PLACED => Frame::Placed(stream, place(value)),
        GRANT => Frame::Grant(narrow()?),
        unknown => return Err(FrameError::Kind(unknown)),
    };
    Ok((frame, rest))
}
