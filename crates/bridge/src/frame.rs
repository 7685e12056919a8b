//! Frames: a 16-byte header and a JSON body.
//!
//! ```text
//!  0         4         8                   16
//!  +---------+---------+-------------------+------------
//!  | type    | size    | id                | body ...        all little endian; size counts the header
//!  +---------+---------+-------------------+------------
//! ```
//!
//! The guest is not trusted, and the host is not trusted to be free of faults, so every reader has a
//! limit: a host takes at most [`GUEST_TO_HOST`] bytes (what hcsshim's host takes) until both ends
//! agreed on more, a guest at most [`HOST_TO_GUEST`]. A frame outside its limits ends the connection:
//! behind a wrong size nothing can be found again. The limit bounds memory too, and memory is taken
//! as bytes arrive, never on the word of a header.

mod kind;

pub use kind::{Category, Kind, MessageType};

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The size of a header in bytes, and so the smallest size a frame can state.
pub const HEADER: u32 = 16;

/// The largest frame a host reads, header included, before more is negotiated.
pub const GUEST_TO_HOST: u32 = 0x1_0000;

/// The largest frame a host reads from a guest that negotiated our extension.
pub const GUEST_TO_HOST_NEGOTIATED: u32 = 0x10_0000;

/// The largest frame a guest reads.
pub const HOST_TO_GUEST: u32 = 0x40_0000;

/// Why a stream of frames cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header states a size below that of a header.
    #[error("frame {message_type} states a size of {size} bytes, less than its header")]
    TooSmall {
        /// What the frame claims to be.
        message_type: MessageType,
        /// The size in its header.
        size: u32,
    },
    /// The frame is larger than its reader takes.
    #[error("frame {message_type} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What the frame claims to be.
        message_type: MessageType,
        /// Its size in bytes, header included.
        size: u64,
        /// The reader's limit.
        limit: u32,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, after {had} bytes of it")]
    Truncated {
        /// How many bytes of the frame had come.
        had: usize,
    },
    /// The stream itself failed.
    #[error("reading a frame")]
    Read(#[source] io::Error),
    /// The stream itself failed.
    #[error("writing a frame")]
    Write(#[source] io::Error),
}

/// One message on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub message_type: MessageType,
    /// Pairs a response with its request; zero for notifications.
    pub id: u64,
    /// The JSON text, as it was on the wire.
    pub body: Vec<u8>,
}

impl Frame {
    /// The frame's size on the wire, header included.
    pub fn size(&self) -> u64 {
        u64::from(HEADER) + self.body.len() as u64
    }

    /// The bytes of the frame, for a reader that takes frames up to `limit` bytes.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn to_bytes(&self, limit: u32) -> Result<Vec<u8>, FrameError> {
        let (message_type, size) = (self.message_type, self.size());
        let too_large = FrameError::TooLarge { message_type, size, limit };
        let Ok(stated) = u32::try_from(size) else { return Err(too_large) };
        if stated > limit {
            return Err(too_large);
        }
        let mut bytes = Vec::with_capacity(HEADER as usize + self.body.len());
        bytes.extend_from_slice(&message_type.0.to_le_bytes());
        bytes.extend_from_slice(&stated.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }
}

/// The header of a frame whose size is within its reader's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub message_type: MessageType,
    /// Its size in bytes, header included.
    pub size: u32,
    /// Its id.
    pub id: u64,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError::TooSmall`] and [`FrameError::TooLarge`].
    pub fn parse(bytes: &[u8; HEADER as usize], limit: u32) -> Result<Self, FrameError> {
        let [t0, t1, t2, t3, s0, s1, s2, s3, id @ ..] = *bytes;
        let message_type = MessageType(u32::from_le_bytes([t0, t1, t2, t3]));
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        if size < HEADER {
            return Err(FrameError::TooSmall { message_type, size });
        }
        if size > limit {
            return Err(FrameError::TooLarge { message_type, size: size.into(), limit });
        }
        Ok(Self { message_type, size, id: u64::from_le_bytes(id) })
    }
}

/// Cuts a stream of bytes into frames, however the bytes arrive.
#[derive(Debug)]
pub struct Decoder {
    limit: u32,
    buffer: Vec<u8>,
}

impl Decoder {
    /// A decoder for frames of at most `limit` bytes.
    pub fn new(limit: u32) -> Self {
        Self { limit, buffer: Vec::new() }
    }

    /// Takes frames up to `limit` bytes from now on.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::TooSmall`] and [`FrameError::TooLarge`], as soon as the header is there. The
    /// stream cannot be used any further; the answer stays the same.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk() else { return Ok(None) };
        let Header { message_type, size, id } = Header::parse(header, self.limit)?;
        let body_length = size as usize - HEADER as usize;
        let Some(body) = rest.get(..body_length) else { return Ok(None) };
        let body = body.to_vec();
        self.buffer.drain(..size as usize);
        Ok(Some(Frame { message_type, id, body }))
    }

    /// The bytes that are not part of a whole frame yet.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }
}

/// Reads frames from a connection.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of at most `limit` bytes from `reader`.
    pub fn new(reader: R, limit: u32) -> Self {
        Self { reader, decoder: Decoder::new(limit) }
    }

    /// Takes frames up to `limit` bytes from now on.
    pub fn set_limit(&mut self, limit: u32) {
        self.decoder.set_limit(limit);
    }

    /// The next frame; `None` when the stream ended between two frames. May be cancelled without
    /// losing a byte.
    ///
    /// # Errors
    /// Every [`FrameError`] but `Write`; after one the connection is of no more use.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            self.decoder.buffer.reserve(16 * 1024);
            let read = self.reader.read_buf(&mut self.decoder.buffer).await;
            match (read.map_err(FrameError::Read)?, self.decoder.pending()) {
                (0, 0) => return Ok(None),
                (0, had) => return Err(FrameError::Truncated { had }),
                _ => {}
            }
        }
    }
}

/// Writes one frame for a reader that takes at most `limit` bytes, and flushes.
///
/// # Errors
/// [`FrameError::TooLarge`], with nothing written, and [`FrameError::Write`].
pub async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    frame: &Frame,
    limit: u32,
) -> Result<(), FrameError> {
    let bytes = frame.to_bytes(limit)?;
    writer.write_all(&bytes).await.map_err(FrameError::Write)?;
    writer.flush().await.map_err(FrameError::Write)
}

#[cfg(test)]
mod tests;
