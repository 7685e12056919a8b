//! What can be saved of a sandbox that is damaged.

use super::documents::whole;
use super::error::DriverError;
use super::files::{self, Read};
use super::fs::FsDriver;
use super::load::open_sandbox_dir;
use super::{Containers, Whole};
use crate::codec::Tolerance;
use crate::id::SandboxId;
use crate::store::{self, FILE, Generation, StoreError, Tail};
use std::path::Path;

/// What could be saved, and what is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Salvaged {
    /// The newest whole state before any damage; from files, those that can be read.
    pub whole: Whole,
    /// The save it is of; 0 for files.
    pub generation: Generation,
    /// What is not in it, one sentence each; nothing when nothing is lost.
    pub lost: Vec<String>,
}

impl FsDriver {
    /// As [`salvage_sandbox_dir`], of a sandbox of this root.
    ///
    /// # Errors
    /// As there.
    pub fn salvage(&self, id: &str) -> Result<Salvaged, DriverError> {
        salvage_sandbox_dir(&self.root().sandbox(&SandboxId::new(id)?))
    }
}

/// Reads as much of a sandbox's directory as can be read: the newest whole state of its log, else of
/// its files those that are whole. Nothing on disk is changed.
///
/// # Errors
/// When there is no such sandbox, or nothing of the sandbox's own state is left.
pub fn salvage_sandbox_dir(path: &Path) -> Result<Salvaged, DriverError> {
    let (id, dir) = open_sandbox_dir(path)?;
    let log = store::salvage(&dir, path, |log| (whole(&id, log), log.generation, log.tail));
    let unreadable = match log {
        Ok(Some((Ok(whole), generation, tail))) => {
            let lost = match tail {
                Tail::Clean | Tail::Torn { .. } => Vec::new(),
                Tail::Damaged { later, .. } => {
                    vec![format!("generations {} to {later}", generation.0 + 1)]
                }
            };
            return Ok(Salvaged { whole, generation, lost });
        }
        // A later version knows better.
        Err(error @ StoreError::Newer { .. }) => return Err(error.into()),
        Ok(Some((Err(error), ..))) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
        Ok(None) => None,
    };
    let Read::Settled(files) =
        files::read(&dir, Tolerance::TrailingBytes).map_err(store::io("read", path))?
    else {
        return Err(DriverError::Unsettled(id));
    };
    let mut lost: Vec<String> = unreadable.into_iter().collect();
    let sandbox = match files.sandbox {
        Some(Ok(sandbox)) => sandbox,
        Some(Err(source)) => {
            return Err(DriverError::Decode { id, file: FILE.to_owned(), source });
        }
        None => return Err(DriverError::Absent(id)),
    };
    let mut containers = Containers::new();
    for (container, state) in files.containers {
        match state {
            Ok(state) => {
                containers.insert(container, state);
            }
            Err(error) => lost.push(format!("container {container}: {error}")),
        }
    }
    let whole = Whole { sandbox, containers, record: None };
    Ok(Salvaged { whole, generation: Generation(0), lost })
}
