//! The folder of a VM's sockets.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::errors::{Result, UvmError};

/// A run folder; one that we made is removed with all that is in it, one that was there stays.
///
/// That of a VM that may outlive us is removed only by [`RunDir::remove`]: the VM cannot be reached without
/// it, and this process may come to its end in any way.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    ours: bool,
    outlives_us: bool,
}

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
        let ours = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => false,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, ours, outlives_us: false })
    }

    /// The folder of a VM that was adopted: it was made for it, and goes with it.
    pub(super) fn of_adopted(path: PathBuf) -> Self {
        Self { path, ours: true, outlives_us: true }
    }

    /// There is a VM now, and it may outlive us.
    pub(super) fn outlive_us(&mut self) {
        self.outlives_us = true;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The VM is gone.
    pub(super) fn remove(mut self) {
        self.outlives_us = false;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.ours
            && !self.outlives_us
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the run folder");
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
        let mut outlives = RunDir::make(path.clone()).unwrap();
        outlives.outlive_us();
        drop(outlives);
        assert!(path.exists());
        RunDir::of_adopted(path.clone()).remove();
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
