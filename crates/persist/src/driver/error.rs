//! Why a state was not saved or not read.

use super::features::FeatureError;
use super::record::RecordError;
use crate::codec::{DecodeError, EncodeError};
use crate::foreign::ConvertError;
use crate::id::{IdError, SandboxId};
use crate::lock::LockError;
use crate::root::GlobalError;
use crate::store::{Generation, StoreError};
use thiserror::Error;

/// Why a state was not saved or not read.
#[derive(Debug, Error)]
pub enum DriverError {
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The lock was not had, or not good enough.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is no such sandbox.
    #[error("no state of sandbox {0} is kept")]
    Absent(SandboxId),
    /// There is a sandbox of that id already.
    #[error("there is a sandbox {0} already")]
    Exists(SandboxId),
    /// Another runtime's state, which has other contents.
    #[error("cannot convert the state of sandbox {id}")]
    Alien {
        /// The sandbox.
        id: SandboxId,
        /// Whose it is.
        source: ConvertError,
    },
    /// Someone else has saved since.
    #[error(
        "sandbox {id} is at generation {found} and not at {expected}: someone else has saved it"
    )]
    Conflict {
        /// The sandbox.
        id: SandboxId,
        /// What the caller knew.
        expected: Generation,
        /// What there is.
        found: Generation,
    },
    /// A value has no text.
    #[error("cannot save {}", name(id, container.as_deref()))]
    Encode {
        /// The sandbox.
        id: SandboxId,
        /// The container, if it is its state.
        container: Option<String>,
        /// Which value.
        source: EncodeError,
    },
    /// A document cannot be read.
    #[error("cannot read {file} of sandbox {id}")]
    Decode {
        /// The sandbox.
        id: SandboxId,
        /// The document.
        file: String,
        /// Why not.
        source: DecodeError,
    },
    /// Our own record cannot be read or written.
    #[error("cannot use the record of sandbox {id}")]
    Record {
        /// The sandbox.
        id: SandboxId,
        /// Why not.
        source: RecordError,
    },
    /// The state in a directory is that of another sandbox.
    #[error("the directory of sandbox {id} holds the state of {found:?}")]
    Misplaced {
        /// Whose directory it is.
        id: SandboxId,
        /// Whose state it is.
        found: String,
    },
    /// The files kept changing while they were read.
    #[error("the files of sandbox {0} keep changing: someone is writing them without a pause")]
    Unsettled(SandboxId),
    /// The directory or its log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Data that belongs to no sandbox.
    #[error(transparent)]
    Global(#[from] GlobalError),
    /// No driver has this name.
    #[error("there is no driver {name:?}; there are {known}")]
    NoDriver {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// The features could not be registered.
    #[error("the experimental features are not in order")]
    Features(#[from] FeatureError),
    /// The user has no place for states.
    #[error("cannot tell where states of user {uid} are kept: {why}")]
    NoRoot {
        /// The user's number.
        uid: u32,
        /// Why not.
        why: &'static str,
    },
    /// A server refused, or was not reached.
    #[error("the server {server} did not {verb} {what}")]
    Server {
        /// Its address.
        server: String,
        /// What it was to do.
        verb: &'static str,
        /// With what.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DriverError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            DriverError::Id(_) => "E-STATE-ID",
            DriverError::Lock(LockError::Busy { .. }) => "E-STATE-LOCKED",
            DriverError::Lock(_) => "E-STATE-LOCK",
            DriverError::Absent(_) => "E-STATE-ABSENT",
            DriverError::Exists(_) => "E-STATE-EXISTS",
            DriverError::Alien { .. } => "E-STATE-FOREIGN",
            DriverError::Conflict { .. } => "E-STATE-CONFLICT",
            DriverError::Encode { .. } => "E-STATE-VALUE",
            DriverError::Decode { source: DecodeError::Foreign { .. }, .. } => "E-STATE-FOREIGN",
            DriverError::Decode { .. } => "E-STATE-DAMAGED",
            DriverError::Record { source, .. } => source.code(),
            DriverError::Misplaced { .. } => "E-STATE-MISPLACED",
            DriverError::Unsettled(_) => "E-STATE-UNSETTLED",
            DriverError::Store(error) => error.code(),
            DriverError::Global(GlobalError::Escapes { .. }) => "E-STATE-PATH",
            DriverError::Global(GlobalError::Io { .. }) => "E-STATE-IO",
            DriverError::NoDriver { .. } => "E-STATE-DRIVER",
            DriverError::Features(_) => "E-STATE-FEATURES",
            DriverError::NoRoot { .. } => "E-STATE-ROOT",
            DriverError::Server { .. } => "E-STATE-SERVER",
        }
    }
}

impl DriverError {
    /// What to do about it, if something can be done.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            DriverError::Lock(LockError::Busy { .. }) => {
                "wait until it has finished, or find out why it does not"
            }
            DriverError::Store(StoreError::Damaged { .. } | StoreError::Unreadable { .. }) => {
                "`coracle state read --salvage DIR` shows the newest state that is whole"
            }
            DriverError::Decode { source, .. } => match source {
                DecodeError::Foreign { .. } => "`coracle state import` converts what can be kept",
                DecodeError::Trailing { .. } => {
                    "if what follows is of no use, `--accept-trailing` passes over it"
                }
                DecodeError::Damaged { .. } => {
                    "`coracle state read --salvage DIR` shows what the other files hold"
                }
                DecodeError::Value { .. } => return None,
            },
            DriverError::Store(StoreError::Newer { .. })
            | DriverError::Record { source: RecordError::Newer { .. }, .. } => {
                "use the coracle that wrote it, or a later one; nothing was changed"
            }
            DriverError::Exists(_) => "`--replace` puts the new one in its place",
            DriverError::Absent(_) => "`coracle state ls` lists those there are",
            DriverError::Unsettled(_) => "try again when its writer is done",
            DriverError::Server { source, .. } => {
                if !source.to_string().contains("too many operations") {
                    return None;
                }
                "start the server with a larger `--max-txn-ops`"
            }
            DriverError::Id(_)
            | DriverError::Lock(_)
            | DriverError::Alien { .. }
            | DriverError::Conflict { .. }
            | DriverError::Encode { .. }
            | DriverError::Record { .. }
            | DriverError::Misplaced { .. }
            | DriverError::Store(_)
            | DriverError::Global(_)
            | DriverError::NoDriver { .. }
            | DriverError::Features(_)
            | DriverError::NoRoot { .. } => return None,
        })
    }
}

fn name(id: &SandboxId, container: Option<&str>) -> String {
    match container {
        Some(container) => format!("container {container} of sandbox {id}"),
        None => format!("sandbox {id}"),
    }
}
