//! Remembers which image a source gave the last time.
//!
//! For a file (a tar, an archive) this spares reading it: its identity, size and times name it as
//! well as its digest does, unless it was changed a moment ago. For a directory it tells which
//! image is out of date once there is a new one; that is then removed, or every change to a
//! directory would leave another image behind.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Image, Store, StoreError};
use crate::digest::{Digest, Hasher};
use crate::error::ImageError;
use crate::source::{Source, SourceKind};

/// The folder of the store.
pub(super) const FOLDER: &str = "known";

/// A file younger than this may be changed without its times showing it.
const CLOCK_TICK: Duration = Duration::from_millis(50);

impl Store {
    /// The image that a file gave before, if neither has changed since.
    pub(super) fn recall(&self, source: &Source) -> Result<Option<Image>, ImageError> {
        if !is_file(source.kind()) {
            return Ok(None);
        }
        let Some(name) = name(source) else { return Ok(None) };
        match self.read(name) {
            Some(key) => self.find(key, true),
            None => Ok(None),
        }
    }

    /// Notes which image the source gave.
    pub(super) fn remember(&self, source: &Source, image: &Image) -> Result<(), ImageError> {
        let (Some(name), Some(key)) = (name(source), image.key) else { return Ok(()) };
        let before = self.read(name);
        if before == Some(key) {
            return Ok(());
        }
        let failed = || StoreError::io("write", &self.note(name));
        let mut note = tempfile::NamedTempFile::new_in(self.root.join(FOLDER)).map_err(failed())?;
        note.write_all(key.to_string().as_bytes()).map_err(failed())?;
        note.persist(self.note(name)).map_err(|error| failed()(error.error))?;
        if source.kind() == SourceKind::Directory
            && let Some(old) = before
            && let Err(error) = self.remove(old)
        {
            tracing::debug!(%old, %error, "the directory's last image is kept");
        }
        Ok(())
    }

    fn read(&self, name: Digest) -> Option<Digest> {
        fs::read_to_string(self.note(name)).ok()?.parse().ok()
    }

    fn note(&self, name: Digest) -> PathBuf {
        self.root.join(FOLDER).join(name.hex())
    }
}

fn is_file(kind: SourceKind) -> bool {
    match kind {
        SourceKind::Tar | SourceKind::Archive => true,
        SourceKind::Directory | SourceKind::OciLayout | SourceKind::Erofs => false,
    }
}

/// Under which name a source is remembered; `None` when it should not be.
fn name(source: &Source) -> Option<Digest> {
    let mut hasher = Hasher::default();
    hasher.field(format!("{:?}", source.kind()).as_bytes());
    hasher.field(source.reference().unwrap_or_default().as_bytes());
    match source.kind() {
        SourceKind::Directory => {
            let path = fs::canonicalize(source.path()).ok()?;
            hasher.field(path.as_os_str().as_bytes());
        }
        SourceKind::Tar | SourceKind::Archive => {
            let stat = File::open(source.path()).and_then(|file| file.metadata()).ok()?;
            let changed = Duration::new(
                u64::try_from(stat.ctime()).ok()?,
                u32::try_from(stat.ctime_nsec()).ok()?,
            );
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).ok()?;
            if age < CLOCK_TICK {
                return None;
            }
            for number in [stat.dev(), stat.ino(), stat.size()] {
                hasher.field(&number.to_le_bytes());
            }
            for number in [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()] {
                hasher.field(&number.to_le_bytes());
            }
        }
        SourceKind::OciLayout | SourceKind::Erofs => return None,
    }
    Some(hasher.digest())
}
