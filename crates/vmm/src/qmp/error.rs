//! What can go wrong on a control socket.

use std::{io, time::Duration};

/// A failure of a QMP connection or command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The socket cannot be reached.
    #[error("connect")]
    Connect(#[source] io::Error),
    /// The other end closed, or the connection broke.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The other end sent what is not QMP.
    #[error("not QMP: {0}")]
    Protocol(String),
    /// The command was refused.
    #[error("{desc}")]
    Refused {
        /// QMP's error class, such as `GenericError` or `DeviceNotFound`.
        class: String,
        /// The explanation.
        desc: String,
    },
}
