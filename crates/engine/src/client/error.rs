//! Why a sandbox could not be asked, or did not do it: our own failure or one told by its monitor.

use crate::monitor::api::Failure;

/// Why a sandbox could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No sandbox has this name, nor one that begins so.
    #[error("there is no sandbox named {name}")]
    Unknown {
        /// The name given.
        name: String,
    },
    /// Several begin so.
    #[error("{name} could be any of {}", candidates.join(", "))]
    Ambiguous {
        /// The name given.
        name: String,
        /// Whose names begin so.
        candidates: Vec<String>,
    },
    /// What is written down of it cannot be read.
    #[error("cannot read what is written down of the sandboxes")]
    Read(#[source] Box<crate::Error>),
    /// It has ended, so this cannot be asked of it.
    #[error("the sandbox {name} is not running")]
    NotRunning {
        /// The sandbox.
        name: String,
    },
    /// It cannot be removed.
    #[error("cannot remove the sandbox {name}")]
    Remove {
        /// The sandbox.
        name: String,
        /// Why not.
        source: Box<crate::Error>,
    },
    /// Its monitor does not answer.
    #[error("cannot talk to the sandbox {name}")]
    Talk {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its monitor did not do it.
    #[error("{}", failure.message)]
    Failed {
        /// What it says.
        failure: Box<Failure>,
        /// Its causes, as a chain.
        source: Option<Box<Cause>>,
    },
}

/// One cause of a failure on the other side.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    fn chain(causes: &[String]) -> Option<Box<Cause>> {
        let (first, rest) = causes.split_first()?;
        Some(Box::new(Cause { message: first.clone(), source: Cause::chain(rest) }))
    }
}

impl ClientError {
    /// What the other side, or we, know this failure by.
    pub fn code(&self) -> &str {
        match self {
            Self::Unknown { .. } => "E-SANDBOX-UNKNOWN",
            Self::Ambiguous { .. } => "E-SANDBOX-AMBIGUOUS",
            Self::Read(source) | Self::Remove { source, .. } => source.code(),
            Self::NotRunning { .. } => "E-NOT-RUNNING",
            Self::Talk { .. } => "E-MONITOR",
            Self::Failed { failure, .. } => &failure.code,
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("see what there is: `coracle ls`".to_owned()),
            Self::Ambiguous { .. } => Some("write more of the name".to_owned()),
            Self::Read(source) | Self::Remove { source, .. } => source.help(),
            Self::NotRunning { name } => {
                Some(format!("see how it ended: `coracle inspect {name}`"))
            }
            Self::Talk { .. } => {
                Some("`coracle recover` takes up sandboxes without a monitor".to_owned())
            }
            Self::Failed { failure, .. } => failure.help.clone(),
        }
    }

    /// The exit code that belongs to the command, if this is its failure.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Failed { failure, .. } => failure.exit_code,
            Self::Unknown { .. }
            | Self::Ambiguous { .. }
            | Self::Read(_)
            | Self::NotRunning { .. }
            | Self::Remove { .. }
            | Self::Talk { .. } => None,
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        let source = Cause::chain(&failure.causes);
        Self::Failed { failure: Box::new(failure), source }
    }
}
