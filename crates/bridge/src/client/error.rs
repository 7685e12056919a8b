//! What can go wrong on the host's end of the bridge.

use std::sync::Arc;

use crate::frame::FrameError;
use crate::hresult::Hresult;
use crate::message::incoming::Fatal;
use crate::message::{ContainerId, ErrorRecord};
use crate::wire::WireError;

/// Why a call of the host could not be done. Cheap to clone: one cause may be the
/// answer to many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BridgeError {
    /// The bridge was closed by us, or the guest ended it between two messages.
    #[error("bridge closed")]
    Closed,
    /// The bridge was given up because of a fault. Every later call gets the same.
    #[error("bridge closed")]
    Killed(#[source] Arc<BridgeFault>),
    /// The guest answered that it could not do it.
    #[error("guest RPC failure: {message}")]
    Rpc {
        /// The result code.
        hresult: Hresult,
        /// The guest's words, or those of the code when it had none.
        message: String,
        /// Where and why, as the guest tells it.
        records: Vec<ErrorRecord>,
    },
    /// The limit of a call that can be given up was reached; the bridge lives on.
    #[error("{operation} of {container} did not end within {seconds} s: deadline exceeded")]
    DeadlineExceeded {
        /// What was asked for.
        operation: &'static str,
        /// Of which container.
        container: ContainerId,
        /// The limit.
        seconds: u64,
    },
    /// A container with this id lives; the guest was not asked.
    #[error("container {0} already exists")]
    ContainerExists(ContainerId),
    /// The guest holds no container with this id to go on with.
    #[error("container {0} is not in the guest")]
    NoSuchContainer(ContainerId),
    /// The guest chose a protocol version nobody offered.
    #[error("unexpected version {0} returned")]
    UnexpectedVersion(u32),
    /// The guest has seen a session with a higher number than ours.
    #[error("session {offered} is not newer than the guest's session {current}")]
    StaleSession {
        /// The number we offered.
        offered: u64,
        /// The number to exceed.
        current: u64,
    },
    /// The peer does not know our extension, so there are no sessions to resume.
    #[error("{0} needs a guest that keeps sessions")]
    NoSessions(&'static str),
    /// No socket could be bound for a standard stream.
    #[error("listening on port {port} for {stream}")]
    Listen {
        /// The port.
        port: u32,
        /// The stream it is for.
        stream: crate::stdio::StdStream,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// All port numbers for standard streams have been used.
    #[error("no port is left for a standard stream")]
    PortsUsedUp,
    /// The request cannot be put on the wire; nothing was sent.
    #[error("writing a request")]
    Encode(#[source] Arc<WireError>),
    /// The request is larger than a guest takes; nothing was sent.
    #[error("sending a request")]
    TooLarge(#[source] Arc<FrameError>),
    /// A long answer, fetched in pieces, could not be put together.
    #[error("fetching a long answer: {0}")]
    LongAnswer(String),
    /// The guest named an offset for a resumed stream that no stream has.
    #[error("the guest resumes a stream of process {pid} at offset {offset}, which no stream has")]
    Offset {
        /// The process.
        pid: u32,
        /// The offset.
        offset: u64,
    },
    /// The process has not exited yet.
    #[error("process {0} has not exited")]
    NotExited(u32),
}

/// Why the bridge was given up.
#[derive(Debug, thiserror::Error)]
pub enum BridgeFault {
    /// The guest did not answer in time.
    #[error("message timeout: no answer to the {request} within {seconds} s")]
    TimedOut {
        /// The request.
        request: crate::frame::MessageType,
        /// The limit.
        seconds: u64,
    },
    /// The connection broke, or carries what is not a frame.
    #[error("the bridge connection failed")]
    Frame(#[from] FrameError),
    /// The guest sent what a host must not accept.
    #[error("the guest broke the protocol")]
    Protocol(#[from] Fatal),
    /// The connection could not be written to.
    #[error("writing to the bridge connection")]
    Write(#[source] std::io::Error),
}

impl BridgeError {
    /// Whether this says that the bridge is gone, rather than that one call failed.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::Killed(_))
    }

    /// The guest's result code, when the guest answered.
    pub fn hresult(&self) -> Option<Hresult> {
        match self {
            Self::Rpc { hresult, .. } => Some(*hresult),
            _ => None,
        }
    }
}
