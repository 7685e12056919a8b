//! To and from a root of Kata's, where there are no logs.

use super::documents::documents;
use super::error::DriverError;
use super::files::{self, Read};
use super::load::{open_sandbox_dir, read_sandbox_dir};
use super::{Save, Whole};
use crate::codec::{DecodeError, Tolerance};
use crate::foreign::{ConvertError, Dropped, Foreign, convert};
use crate::lock::{Ask, LockError, LockMode, Wait, flock};
use crate::root::{Root, SANDBOXES};
use crate::store::{self, Disk, FILE};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A sandbox of Kata's in our terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// Its state.
    pub whole: Whole,
    /// Which other version wrote it; nothing when it is of ours.
    pub from: Option<Foreign>,
    /// What has no place in it.
    pub dropped: Vec<Dropped>,
}

/// Reads a sandbox's directory as any Kata that is written in Go has left it.
///
/// # Errors
/// As [`read_sandbox_dir`]; and when it is the Rust runtime's, which has other contents.
pub fn import_from_kata(path: &Path) -> Result<Imported, DriverError> {
    match read_sandbox_dir(path, Tolerance::Strict) {
        Ok(loaded) => Ok(Imported { whole: loaded.whole, from: None, dropped: Vec::new() }),
        Err(DriverError::Decode { source: DecodeError::Foreign { .. }, .. }) => convert_dir(path),
        Err(error) => Err(error),
    }
}

fn convert_dir(path: &Path) -> Result<Imported, DriverError> {
    let (id, dir) = open_sandbox_dir(path)?;
    let read = |dir: &OwnedFd| store::open_file(dir, FILE).and_then(store::read_all);
    let bytes = read(&dir).map_err(store::io("read", path))?;
    let converted = convert(&bytes).map_err(|source| match source {
        ConvertError::Unreadable(source) => {
            DriverError::Decode { id: id.clone(), file: FILE.to_owned(), source }
        }
        alien @ ConvertError::Alien(_) => DriverError::Alien { id: id.clone(), source: alien },
    })?;
    let Read::Settled(files) =
        files::read(&dir, Tolerance::Strict).map_err(store::io("read", path))?
    else {
        return Err(DriverError::Unsettled(id));
    };
    let containers = files::all_whole(&id, files.containers)?;
    let whole = Whole { sandbox: converted.state, containers, record: None };
    Ok(Imported { whole, from: converted.from, dropped: converted.dropped })
}

/// Writes a sandbox as Kata would, without a log, so that Kata takes it for its own. It is there
/// whole or not at all, also for one who reads without a lock.
///
/// # Errors
/// [`DriverError::Exists`] when there is one of that id, unless it is to be replaced; and when it
/// has no text or the disk refuses.
pub fn export_to_kata(root: &Root, whole: &Whole, replace: bool) -> Result<(), DriverError> {
    let disk = Disk::default();
    let (sandbox, containers) = (&whole.sandbox, &whole.containers);
    let save = Save { sandbox, containers, record: None, only_if: None };
    let id = save.id()?;
    let files = documents(&id, &save)?;
    let path = root.sandbox(&id);
    let failed = || store::io("write", &path);
    let sandboxes = root.make(&disk, &[SANDBOXES]).map_err(failed())?;
    let making = root.make(&disk, &[EXPORTS]).map_err(failed())?;
    let ask =
        Ask { mode: LockMode::Exclusive, wait: Wait::For(PATIENCE), cancel: None, create: false };
    let lock = match flock::lock(&id, &path, ask) {
        Ok(_) if !replace => return Err(DriverError::Exists(id)),
        Ok(lock) => Some(lock),
        Err(LockError::NoSandbox(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let scratch = super::fs::trash_name();
    let written = write(&disk, &making, &scratch, &files).and_then(|()| {
        let flags = match lock {
            Some(_) => RenameFlags::EXCHANGE,
            None => RenameFlags::NOREPLACE,
        };
        rustix::fs::renameat_with(&making, &scratch, &sandboxes, id.as_str(), flags)?;
        disk.sync_dir(&sandboxes)
    });
    // What was replaced, or could not be written.
    let removed = disk.remove_tree(making.as_fd(), &scratch);
    match written {
        Err(Errno::EXIST) => Err(DriverError::Exists(id)),
        written => Ok(written.and(removed).map_err(failed())?),
    }
}

/// Where sandboxes are made before they appear; nobody empties it as the trash is.
const EXPORTS: &str = ".export";

const PATIENCE: Duration = Duration::from_secs(10);

fn write(
    disk: &Disk,
    place: &OwnedFd,
    name: &str,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(), Errno> {
    disk.make_dir(place, name)?;
    let dir = store::open_dir(place, name)?;
    for (file, bytes) in files {
        let inner = match file.split_once('/') {
            Some((container, _)) => {
                disk.make_dir(&dir, container)?;
                Some(store::open_dir(&dir, container)?)
            }
            None => None,
        };
        let file = disk.create(inner.as_ref().unwrap_or(&dir), FILE)?;
        disk.write(&file, bytes, 0)?;
        disk.sync(&file)?;
        if let Some(inner) = &inner {
            disk.sync_dir(inner)?;
        }
    }
    disk.sync_dir(&dir)
}
