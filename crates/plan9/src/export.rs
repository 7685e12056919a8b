//! What is shared: a directory, and how much of it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

/// The directory cannot be shared.
#[derive(Debug, thiserror::Error)]
#[error("sharing {}", path.display())]
pub struct ExportError {
    /// The directory.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// A directory to share.
#[derive(Debug)]
pub struct Export {
    pub(crate) root: OwnedFd,
    /// Refuse everything that changes anything.
    pub(crate) read_only: bool,
    /// If there are any, only these names exist in the directory itself.
    pub(crate) allowed: Option<BTreeSet<OsString>>,
}

impl Export {
    /// Shares everything in `directory`. The directory is opened here, and stays the one that is
    /// shared whatever becomes of its path.
    ///
    /// # Errors
    /// It is no directory, or we may not enter it.
    pub fn new(directory: &Path) -> Result<Self, ExportError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(directory, flags, Mode::empty())
            .map_err(|source| ExportError { path: directory.to_owned(), source: source.into() })?;
        Ok(Self { root, read_only: false, allowed: None })
    }

    /// The same, refusing everything that changes anything.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// The same, with only these names in the directory itself.
    #[must_use]
    pub fn only<S: Into<OsString>>(self, names: impl IntoIterator<Item = S>) -> Self {
        Self { allowed: Some(names.into_iter().map(Into::into).collect()), ..self }
    }

    pub(crate) fn allows(&self, name: &OsStr) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    }
}
