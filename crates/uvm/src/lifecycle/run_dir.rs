//! The folder of a VM's sockets.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::errors::{Result, UvmError};

/// A run folder; one that we made is removed with all that is in it, one that was there stays and
/// loses what the keeper left: its lock, which a dead keeper cannot remove without a race.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    then: Then,
}

/// What becomes of the folder.
#[derive(Debug, Clone, Copy)]
enum Then {
    RemoveFolder,
    RemoveLock,
    Leave,
}

const KEEPER_LOCK: &str = "keeper.lock";

impl RunDir {
    /// Makes the folder, for us alone, unless it is there.
    pub(super) fn make(path: PathBuf) -> Result<Self> {
        let failed = |source| UvmError::HostFile {
            operation: "make the run folder",
            path: path.clone(),
            source,
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        let then = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Then::RemoveFolder,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
                Then::RemoveLock
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, then })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder to a VM that outlives us.
    pub(super) fn leave(mut self) {
        self.then = Then::Leave;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let removed = match self.then {
            Then::RemoveFolder => fs::remove_dir_all(&self.path),
            Then::RemoveLock => fs::remove_file(self.path.join(KEEPER_LOCK)),
            Then::Leave => Ok(()),
        };
        match removed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot clear the run folder");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_made_goes_and_one_that_was_there_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        drop(RunDir::make(path.clone()).unwrap());
        assert!(!path.exists());
        fs::create_dir(&path).unwrap();
        drop(RunDir::make(path.clone()).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "").unwrap();
        assert!(RunDir::make(path).is_err());
    }
}
