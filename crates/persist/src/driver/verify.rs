//! What is kept of a sandbox, compared with what should be.

use super::documents::whole;
use super::files::{self, Read};
use super::{DriverError, sentence};
use crate::codec::{DecodeError, Tolerance};
use crate::id::SandboxId;
use crate::store::{self, FILE, Generation, Sight, StoreError, Tail, Unprojected};
use rustix::fd::OwnedFd;
use std::fmt;
use std::path::Path;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// What was saved is not there any more.
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another version wrote it, and this one cannot read it.
    Foreign {
        /// The file.
        file: String,
        /// Which version, as far as can be told.
        by: String,
    },
    /// Someone else has written a file since it was saved.
    Edited {
        /// The file.
        file: String,
    },
    /// A file for others does not say yet what the log says.
    Behind {
        /// The file.
        file: String,
    },
    /// Something an interrupted writer has left.
    Leftover {
        /// The file.
        file: String,
    },
}

impl Finding {
    /// Whether something is lost or cannot be read, rather than only out of order.
    pub fn is_loss(&self) -> bool {
        match self {
            Finding::Damaged { .. } | Finding::Foreign { .. } => true,
            Finding::Edited { .. } | Finding::Behind { .. } | Finding::Leftover { .. } => false,
        }
    }

    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Finding::Damaged { .. } => "damaged",
            Finding::Foreign { .. } => "foreign version",
            Finding::Edited { .. } => "foreign edit",
            Finding::Behind { .. } => "behind",
            Finding::Leftover { .. } => "leftover",
        }
    }

    /// The file it is about, relative to the sandbox's directory.
    pub fn file(&self) -> &str {
        match self {
            Finding::Damaged { file, .. }
            | Finding::Foreign { file, .. }
            | Finding::Edited { file }
            | Finding::Behind { file }
            | Finding::Leftover { file } => file,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Damaged { why, .. } => write!(f, "damaged: {why}"),
            Finding::Foreign { by, .. } => write!(f, "foreign version: {by}"),
            Finding::Edited { .. } => f.write_str("foreign edit: it is not what was saved"),
            Finding::Behind { .. } => f.write_str("behind: the next save brings it up to date"),
            Finding::Leftover { .. } => f.write_str("leftover: the next save removes it"),
        }
    }
}

/// What is to be said of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its id.
    pub id: String,
    /// The newest save that is whole; 0 for files that Kata wrote, nothing when none is whole.
    pub generation: Option<Generation>,
    /// What is wrong; nothing when it is intact.
    pub findings: Vec<Finding>,
}

/// Compares a sandbox's directory with its log, byte for byte; without a log, reads its files.
pub(super) fn verify(
    id: &SandboxId,
    dir: &OwnedFd,
    path: &Path,
    tolerance: Tolerance,
) -> Result<Verified, StoreError> {
    let mut verified = Verified { id: id.to_string(), generation: None, findings: Vec::new() };
    let read = store::salvage(dir, path, |log| {
        let state = whole(id, log);
        let seen = store::see_beside(dir, log, Sight::Stare);
        (state.map(|_| ()), log.generation, log.tail, seen)
    });
    let (state, generation, tail, seen) = match read {
        Ok(Some(read)) => read,
        Ok(None) => {
            verify_files(id, dir, path, tolerance, &mut verified)?;
            return Ok(verified);
        }
        Err(error @ StoreError::Io { .. }) => return Err(error),
        Err(error) => {
            verified.findings.push(of_store(&error));
            return Ok(verified);
        }
    };
    match state {
        Ok(()) => verified.generation = Some(generation),
        Err(error) => verified.findings.push(of_driver(&error)),
    }
    let file = store::LOG_FILE.to_owned();
    match tail {
        Tail::Clean => {}
        // Nobody was told of that commit.
        Tail::Torn { .. } => verified.findings.push(Finding::Leftover { file }),
        Tail::Damaged { at, later } => {
            let why = format!(
                "byte {at}: generation {generation} is whole, up to {later} was written after it"
            );
            verified.findings.push(Finding::Damaged { file, why });
        }
    }
    for thing in seen.map_err(store::io("read", path))? {
        let file = thing.name().to_owned();
        verified.findings.push(match thing {
            Unprojected::Stale(_) | Unprojected::Missing(_) | Unprojected::Torn(_) => {
                Finding::Behind { file }
            }
            Unprojected::Edited(_) | Unprojected::Added(_) => Finding::Edited { file },
            Unprojected::Leftover(_) => Finding::Leftover { file },
        });
    }
    Ok(verified)
}

fn verify_files(
    id: &SandboxId,
    dir: &OwnedFd,
    path: &Path,
    tolerance: Tolerance,
    verified: &mut Verified,
) -> Result<(), StoreError> {
    let files = match files::read(dir, tolerance).map_err(store::io("read", path))? {
        Read::Settled(files) => files,
        Read::Unsettled => {
            let why = "it keeps changing".to_owned();
            verified.findings.push(Finding::Damaged { file: FILE.to_owned(), why });
            return Ok(());
        }
    };
    match files.sandbox {
        None => {
            // A directory that was made for a first save which never came.
            verified.findings.push(Finding::Leftover { file: ".".to_owned() });
        }
        Some(Ok(state)) if state.sandbox_container != id.as_str() => {
            let why = format!("it is the state of {:?}", state.sandbox_container);
            verified.findings.push(Finding::Damaged { file: FILE.to_owned(), why });
        }
        Some(Ok(_)) => verified.generation = Some(Generation(0)),
        Some(Err(error)) => verified.findings.push(of_decode(FILE, &error)),
    }
    for (container, state) in &files.containers {
        if let Err(error) = state {
            verified.findings.push(of_decode(&format!("{container}/{FILE}"), error));
        }
    }
    Ok(())
}

fn of_decode(file: &str, error: &DecodeError) -> Finding {
    let file = file.to_owned();
    match error {
        DecodeError::Foreign { foreign, .. } => Finding::Foreign { file, by: foreign.to_string() },
        DecodeError::Damaged { .. } | DecodeError::Trailing { .. } | DecodeError::Value { .. } => {
            Finding::Damaged { file, why: sentence(error) }
        }
    }
}

fn of_store(error: &StoreError) -> Finding {
    let file = store::LOG_FILE.to_owned();
    match error {
        StoreError::Newer { .. } => Finding::Foreign { file, by: "a later coracle".to_owned() },
        StoreError::Damaged { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Io { .. }
        | StoreError::TooLarge { .. } => Finding::Damaged { file, why: sentence(error) },
    }
}

fn of_driver(error: &DriverError) -> Finding {
    match error {
        DriverError::Decode { file, source, .. } => of_decode(file, source),
        other => Finding::Damaged { file: store::LOG_FILE.to_owned(), why: sentence(other) },
    }
}
