//! The frames on a stdio connection.
//!
//! A header of 16 bytes, little endian, then at most [`DATA_MAX`] bytes:
//!
//! ```text
//! u8 kind | u8[3] zero | u32 length of the payload | u64 offset | payload
//! ```
//!
//! The sending end writes `Open`, `Data`, `Gap` and `Eof`; the receiving end
//! answers `Ack` and `Stop` on the same connection.

use bytes::{Buf, BufMut, BytesMut};

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 16;

/// Most bytes that one `Data` frame carries, so that no peer makes us hold more.
pub const DATA_MAX: usize = 64 * 1024 - HEADER_LEN;
/// How many bytes a ring's frame carries at most: with its header, they fill a slot of the channel's area.
pub const PIECE: usize = DATA_MAX;

/// Highest offset a frame may name. No stream gets that long, and sums with a
/// frame's length cannot overflow, whatever the other end says.
pub const OFFSET_MAX: u64 = u64::MAX >> 1;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const EOF: u8 = 3;
const GAP: u8 = 4;
const ACK: u8 = 5;
const STOP: u8 = 6;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame of a connection, from the end that dialled (the guest): which
    /// session and port it dialled for. A straggler of an older session that
    /// reaches a port of a newer one is told apart by this.
    Open {
        /// Number of the session that asked for the connection.
        session: u64,
        /// The port that was dialled.
        port: u32,
    },
    /// Bytes of the stream; the first has this offset.
    Data {
        /// Offset of the first byte.
        offset: u64,
        /// 1 to [`DATA_MAX`] bytes.
        bytes: BytesMut,
    },
    /// The stream ends at this offset.
    Eof {
        /// Length of the whole stream in bytes.
        offset: u64,
    },
    /// The bytes from `from` up to `to` were dropped because the ring was full.
    Gap {
        /// First dropped offset.
        from: u64,
        /// First offset after the dropped ones.
        to: u64,
    },
    /// Everything before this offset was consumed and may be freed.
    Ack {
        /// First offset not yet consumed.
        offset: u64,
    },
    /// The receiving end wants no more of this stream, either because it
    /// consumed the `Eof` or because its consumer went away for good.
    Stop {
        /// First offset not consumed.
        offset: u64,
    },
}

/// Bytes that are not a stdio frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The kind byte has no meaning.
    #[error("stdio frame kind {0} is unknown")]
    Kind(u8),
    /// The length is not one this kind may have.
    #[error("stdio frame of kind {kind} has length {length}")]
    Length {
        /// The kind byte.
        kind: u8,
        /// The length the header gave.
        length: u32,
    },
    /// An offset beyond [`OFFSET_MAX`].
    #[error("stdio frame names offset {0}, which no stream has")]
    Offset(u64),
    /// The three bytes after the kind are not zero.
    #[error("stdio frame header has non-zero reserved bytes")]
    Reserved,
}

impl Frame {
    /// The frame's name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "Open",
            Self::Data { .. } => "Data",
            Self::Eof { .. } => "Eof",
            Self::Gap { .. } => "Gap",
            Self::Ack { .. } => "Ack",
            Self::Stop { .. } => "Stop",
        }
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let (kind, length, offset) = match self {
            Self::Open { session, .. } => (OPEN, 4, *session),
            Self::Data { offset, bytes } => (DATA, bytes.len(), *offset),
            Self::Eof { offset } => (EOF, 0, *offset),
            Self::Gap { from, .. } => (GAP, 8, *from),
            Self::Ack { offset } => (ACK, 0, *offset),
            Self::Stop { offset } => (STOP, 0, *offset),
        };
        out.extend_from_slice(&header(kind, length, offset));
        match self {
            Self::Open { port, .. } => out.put_u32_le(*port),
            Self::Data { bytes, .. } => out.extend_from_slice(bytes),
            Self::Gap { to, .. } => out.put_u64_le(*to),
            Self::Eof { .. } | Self::Ack { .. } | Self::Stop { .. } => {}
        }
    }

    /// Takes one frame off the front of `from`, or `None` while it is incomplete.
    ///
    /// # Errors
    /// The header is checked before its payload is waited for, so a hostile
    /// length never makes the caller buffer more than one frame.
    pub fn decode(from: &mut BytesMut) -> Result<Option<Self>, FrameFault> {
        let Some(header) = from.first_chunk() else { return Ok(None) };
        let Head { kind, payload, offset } = Head::read(header)?;
        if from.len() < HEADER_LEN + payload {
            return Ok(None);
        }
        from.advance(HEADER_LEN);
        let mut body = from.split_to(payload);
        Ok(Some(match kind {
            OPEN => Self::Open { session: offset, port: body.get_u32_le() },
            DATA => Self::Data { offset, bytes: body },
            GAP => match body.get_u64_le() {
                to @ 0..=OFFSET_MAX => Self::Gap { from: offset, to },
                to => return Err(FrameFault::Offset(to)),
            },
            EOF => Self::Eof { offset },
            ACK => Self::Ack { offset },
            _ => Self::Stop { offset },
        }))
    }
}

/// What a header says, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    kind: u8,
    /// Bytes behind it.
    pub(super) payload: usize,
    pub(super) offset: u64,
}

impl Head {
    pub(super) fn read(header: &[u8; HEADER_LEN]) -> Result<Self, FrameFault> {
        let mut header = &header[..];
        let kind = header.get_u8();
        let reserved = header.get_uint_le(3);
        let length = header.get_u32_le();
        let offset = header.get_u64_le();
        let wrong = FrameFault::Length { kind, length };
        let payload = usize::try_from(length).map_err(|_| wrong)?;
        let fits = match kind {
            OPEN => payload == 4,
            DATA => (1..=DATA_MAX).contains(&payload),
            GAP => payload == 8,
            EOF | ACK | STOP => payload == 0,
            unknown => return Err(FrameFault::Kind(unknown)),
        };
        if reserved != 0 {
            return Err(FrameFault::Reserved);
        }
        if !fits {
            return Err(wrong);
        }
        if kind != OPEN && offset > OFFSET_MAX {
            return Err(FrameFault::Offset(offset));
        }
        Ok(Self { kind, payload, offset })
    }

    pub(super) fn is_data(&self) -> bool {
        self.kind == DATA
    }
}

/// The header of a `Data` frame with `length` payload bytes (1 to [`DATA_MAX`]).
pub(super) fn data_header(offset: u64, length: usize) -> [u8; HEADER_LEN] {
    header(DATA, length, offset)
}

fn header(kind: u8, length: usize, offset: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = kind;
    let length = u32::try_from(length).expect("payloads are at most DATA_MAX bytes");
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..].copy_from_slice(&offset.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<u64>(), any::<u32>()).prop_map(|(session, port)| Frame::Open { session, port }),
            (0..=OFFSET_MAX, prop::collection::vec(any::<u8>(), 1..300))
                .prop_map(|(offset, bytes)| Frame::Data { offset, bytes: bytes.as_slice().into() }),
            (0..=OFFSET_MAX).prop_map(|offset| Frame::Eof { offset }),
            (0..=OFFSET_MAX, 0..=OFFSET_MAX).prop_map(|(from, to)| Frame::Gap { from, to }),
            (0..=OFFSET_MAX).prop_map(|offset| Frame::Ack { offset }),
            (0..=OFFSET_MAX).prop_map(|offset| Frame::Stop { offset }),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_comes_back_however_it_is_cut(
            frames in prop::collection::vec(any_frame(), 1..8),
            cut in 1usize..40,
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire);
            }
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for part in wire.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_give_a_frame_a_wait_or_a_fault_but_never_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
                prop_assert!(!frame.name().is_empty());
            }
        }
    }

    #[test]
    fn an_offset_no_stream_has_is_refused() {
        let offset = OFFSET_MAX + 1;
        for frame in [Frame::Ack { offset }, Frame::Gap { from: 0, to: offset }] {
            let mut wire = BytesMut::new();
            frame.encode(&mut wire);
            assert_eq!(Frame::decode(&mut wire), Err(FrameFault::Offset(offset)));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_arrive() {
        let mut wire = BytesMut::new();
        wire.extend_from_slice(&header(DATA, DATA_MAX + 1, 0));
        assert_eq!(
            Frame::decode(&mut wire),
            Err(FrameFault::Length { kind: DATA, length: u32::try_from(DATA_MAX + 1).unwrap() })
        );
    }
}
