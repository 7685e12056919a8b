//! A folder in which one process makes one image. See the store's head.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::StoreError;
use crate::digest::Digest;

/// How often a taken slot is asked for again.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// The outcome of asking for a slot.
#[derive(Debug)]
pub(super) enum Claim {
    Mine(Slot),
    /// Another process has it now, or had it a moment ago.
    Taken,
}

/// A locked, empty folder. Dropped before [`commit`](Self::commit), it is removed.
#[derive(Debug)]
pub(super) struct Slot {
    path: PathBuf,
    folder: File,
    committed: bool,
}

impl Slot {
    /// Tries to become the one who makes the image `key`.
    pub(super) fn claim(building: &Path, key: Digest) -> Result<Claim, StoreError> {
        let path = building.join(key.hex());
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::io("create", &path)(error)),
        }
        let Some(folder) = lock(&path)? else { return Ok(Claim::Taken) };
        // What a process that died has left.
        empty(&path).map_err(StoreError::io("empty", &path))?;
        Ok(Claim::Mine(Self { path, folder, committed: false }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a file in the folder.
    pub(super) fn create(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(StoreError::io("create", &path))
    }

    /// Creates a file with this content, and puts it on disk.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let mut file = self.create(name)?;
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(StoreError::io("write", &self.path.join(name)))
    }

    /// Renames the folder to `target`, whose files must be on disk already.
    pub(super) fn commit(mut self, target: &Path) -> Result<(), StoreError> {
        self.folder.sync_all().map_err(StoreError::io("sync", &self.path))?;
        fs::rename(&self.path, target).map_err(StoreError::io("rename to", target))?;
        self.committed = true;
        let images = target.parent().unwrap_or(target);
        File::open(images)
            .and_then(|images| images.sync_all())
            .map_err(StoreError::io("sync", images))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = ?self.path, %error, "an unfinished image is left behind");
        }
    }
}

/// Removes what processes that died have left.
pub(super) fn sweep(building: &Path) {
    let Ok(entries) = fs::read_dir(building) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Ok(Some(_folder)) = lock(&path) {
            // Somebody else may be at the same.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Locks the folder at `path`; `None` when somebody has it, or it is no longer there.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    let folder = match File::open(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(StoreError::io("lock", path)(error.into())),
    }
    // The lock is on what was opened; it may have been renamed or removed since.
    let opened = folder.metadata().map_err(StoreError::io("look at", path))?;
    let same =
        fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino()));
    Ok(same.then_some(folder))
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}
