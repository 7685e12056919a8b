//! Standard streams that survive the loss of a connection.
//!
//! A plain pipe over a connection loses whatever is on its way when the
//! connection breaks, and neither end can tell how much that was. Here every
//! byte of a stream has an absolute offset, counted from the start of the
//! process. The sending end keeps each byte in an [`OutputRing`] until the
//! receiving end says that its consumer took it; after a break both ends agree
//! on an offset and go on from there. So a closed connection is never taken
//! for delivery and never for an end of file: the end is a frame of its own.
//!
//! ```text
//!   process -> SharedRing -> serve_output ==connection==> Receiver -> reader
//!                   ^---------------- Ack, Stop <-----------'
//! ```
//!
//! Both directions use the same two parts: for stdout and stderr the ring is in
//! the guest, for stdin it is in the host. A peer that does not know these
//! frames (hcsshim's) gets the bare bytes instead, see [`serve_output_raw`].

mod frame;
mod input;
mod raw;
mod receiver;
mod ring;
mod sender;

pub use frame::{DATA_MAX, Frame, FrameFault, HEADER_LEN, OFFSET_MAX, PIECE};
pub use input::{Input, InputEnd, serve_input, serve_input_raw};
pub use raw::serve_output_raw;
pub use receiver::Receiver;
pub use ring::{DEFAULT_RING, OutputRing, Piece, RingFault, WhenFull};
pub use sender::{SharedRing, open, serve_output};

/// One of a process's three standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StdStream {
    /// Standard input.
    In,
    /// Standard output; a terminal's output too.
    Out,
    /// Standard error.
    Err,
}

impl std::fmt::Display for StdStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::In => "stdin",
            Self::Out => "stdout",
            Self::Err => "stderr",
        })
    }
}

/// Why a stream's connection could not go on. The stream itself is not lost:
/// it can be continued over another connection.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The connection ended without saying that the stream had ended.
    #[error("stdio connection lost at offset {at}")]
    Lost {
        /// First offset that was not transferred.
        at: u64,
        /// What the connection said; a bare end of file is `UnexpectedEof`.
        #[source]
        source: std::io::Error,
    },
    /// The peer sent bytes that are not a stdio frame.
    #[error("malformed stdio frame")]
    Frame(#[from] FrameFault),
    /// The peer sent a frame that has no place here.
    #[error("unexpected stdio frame {kind} at offset {at}")]
    Unexpected {
        /// Name of the frame.
        kind: &'static str,
        /// The offset this end was at.
        at: u64,
    },
    /// The peer named an offset outside the stream.
    #[error("stdio offset out of range")]
    Offset(#[from] RingFault),
    /// A newer connection serves this stream now.
    #[error("stdio connection superseded by a newer one")]
    Superseded,
}

impl From<StdioError> for std::io::Error {
    fn from(fault: StdioError) -> Self {
        use std::io::ErrorKind;
        let kind = match &fault {
            StdioError::Lost { .. } | StdioError::Superseded => ErrorKind::ConnectionReset,
            StdioError::Frame(_) | StdioError::Unexpected { .. } | StdioError::Offset(_) => {
                ErrorKind::InvalidData
            }
        };
        Self::new(kind, fault)
    }
}
