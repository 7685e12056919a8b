//! Names of sandboxes and containers, which are names of directories too.
//!
//! Kata joins them into paths unchecked: `..` then writes into another sandbox, `.` deletes all of
//! them, and an empty container id overwrites the sandbox's own state. Those are refused here; what
//! else Kata takes, we take.

use crate::store::LOG_FILE;
use std::fmt;
use std::path::Path;
use thiserror::Error;

/// The most bytes of a name in a directory.
const MAX_LEN: usize = 255;
/// Entries of a sandbox's directory that are files of ours.
const OURS: [&str; 5] =
    ["persist.json", "coracle.json", LOG_FILE, ".persist.json.new", ".state.log.new"];

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// It is empty.
    #[error("the id of a {0} is empty")]
    Empty(&'static str),
    /// It would be another directory.
    #[error("{id:?} cannot be the id of a {of}: it would lead out of its directory")]
    Escapes {
        /// The text.
        id: String,
        /// Whose id it was to be.
        of: &'static str,
    },
    /// It is longer than a file name can be.
    #[error("the id of a {of} has {len} bytes; the most is {MAX_LEN}")]
    TooLong {
        /// Whose id it was to be.
        of: &'static str,
        /// Its bytes.
        len: usize,
    },
    /// A file of the sandbox's has this name.
    #[error("{id:?} cannot be the id of a container: a file of the sandbox has that name")]
    Reserved {
        /// The text.
        id: String,
    },
}

/// The id of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(String);

/// The id of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

fn check<'a>(id: &'a str, of: &'static str) -> Result<&'a str, IdError> {
    if id.is_empty() {
        return Err(IdError::Empty(of));
    }
    if id == "." || id == ".." || id.contains(['/', '\0']) {
        return Err(IdError::Escapes { id: id.to_owned(), of });
    }
    if id.len() > MAX_LEN {
        return Err(IdError::TooLong { of, len: id.len() });
    }
    Ok(id)
}

impl SandboxId {
    /// Takes a text for an id.
    ///
    /// # Errors
    /// When it cannot be the name of a directory.
    pub fn new(id: &str) -> Result<Self, IdError> {
        check(id, "sandbox").map(|id| Self(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ContainerId {
    /// Takes a text for an id.
    ///
    /// # Errors
    /// When it cannot be the name of a directory in a sandbox's.
    pub fn new(id: &str) -> Result<Self, IdError> {
        let id = check(id, "container")?;
        if OURS.contains(&id) {
            return Err(IdError::Reserved { id: id.to_owned() });
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for SandboxId {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_lead_elsewhere_is_no_id() {
        for text in ["", ".", "..", "../s2", "a/b", "/", "a\0b"] {
            assert!(SandboxId::new(text).is_err(), "{text:?}");
            assert!(ContainerId::new(text).is_err(), "{text:?}");
        }
        assert!(SandboxId::new(&"x".repeat(256)).is_err());
    }

    #[test]
    fn what_kata_takes_is_taken() {
        for text in ["a", "...", "-x", "with space", "é", "a:b@c", ".hidden", &"x".repeat(255)] {
            assert!(SandboxId::new(text).is_ok(), "{text:?}");
            assert!(ContainerId::new(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_container_cannot_be_called_like_a_file_of_its_sandbox() {
        for text in OURS {
            assert_eq!(ContainerId::new(text), Err(IdError::Reserved { id: text.to_owned() }));
            assert!(SandboxId::new(text).is_ok());
        }
    }
}
