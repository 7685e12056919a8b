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
    /// The sandbox has no further container of this name, nor one that begins so.
    #[error("the sandbox {sandbox} has no container {name}")]
    UnknownContainer {
        /// The sandbox.
        sandbox: String,
        /// The name given.
        name: String,
    },
    /// Several begin so.
    #[error("{sandbox}/{name} could be any of {}", candidates.join(", "))]
    AmbiguousContainer {
        /// The sandbox.
        sandbox: String,
        /// The name given.
        name: String,
        /// Whose names begin so.
        candidates: Vec<String>,
    },
    /// Its command takes no input.
    #[error("the command of {name} takes no input")]
    NoInput {
        /// The container.
        name: String,
    },
    /// Somebody else is at its input.
    #[error("somebody else is attached to the input of the sandbox {name}")]
    InputTaken {
        /// The sandbox.
        name: String,
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
            Self::UnknownContainer { .. } => "E-CONTAINER-UNKNOWN",
            Self::AmbiguousContainer { .. } => "E-CONTAINER-AMBIGUOUS",
            Self::NoInput { .. } => "E-INPUT-NONE",
            Self::InputTaken { .. } => "E-INPUT-TAKEN",
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
            Self::Ambiguous { .. } | Self::AmbiguousContainer { .. } => {
                Some("write more of the name".to_owned())
            }
            Self::UnknownContainer { sandbox, .. } => {
                Some(format!("see which there are: `coracle ls {sandbox}`"))
            }
            Self::NoInput { .. } => {
                Some("one that is to have input is started with `run --detach -i`".to_owned())
            }
            Self::InputTaken { .. } => {
                Some("without -i you see its output all the same".to_owned())
            }
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
            | Self::UnknownContainer { .. }
            | Self::AmbiguousContainer { .. }
            | Self::NoInput { .. }
            | Self::InputTaken { .. }
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
