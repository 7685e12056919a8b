//! What can go wrong with a sandbox's directory.

use super::replay::Generation;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a sandbox's documents could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused something.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was to be done, as in "write".
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A log with commits that are lost.
    #[error(
        "the log {} is damaged at byte {at}: generation {good} is whole, generation {later} was written later", path.display()
    )]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where.
        at: usize,
        /// The newest generation before the damage.
        good: Generation,
        /// The newest generation behind it.
        later: Generation,
    },
    /// A log without one whole snapshot.
    #[error("the log {} is damaged from its beginning", path.display())]
    Unreadable {
        /// The log.
        path: PathBuf,
    },
    /// A log that a later version has written. It is left as it is.
    #[error("the log {} has version {found}; this coracle knows up to {}", path.display(), super::frame::VERSION)]
    Newer {
        /// The log.
        path: PathBuf,
        /// Its version.
        found: u8,
    },
    /// More than a log can hold.
    #[error("a commit of {len} bytes to {} is too large: the most is {}", path.display(), super::frame::MAX_BODY)]
    TooLarge {
        /// The directory.
        path: PathBuf,
        /// Bytes of all its documents.
        len: usize,
    },
}

impl StoreError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => "E-STATE-IO",
            StoreError::Damaged { .. } | StoreError::Unreadable { .. } => "E-STATE-DAMAGED",
            StoreError::Newer { .. } => "E-STATE-NEWER",
            StoreError::TooLarge { .. } => "E-STATE-TOO-LARGE",
        }
    }

    /// What the system said, if it said anything.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            StoreError::Io { source, .. } => Some(source.kind()),
            StoreError::Damaged { .. }
            | StoreError::Unreadable { .. }
            | StoreError::Newer { .. }
            | StoreError::TooLarge { .. } => None,
        }
    }
}
