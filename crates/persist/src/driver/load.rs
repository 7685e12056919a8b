//! Reading a sandbox's directory, log or not.

use super::documents::{belongs, whole};
use super::error::DriverError;
use super::files::{self, Files, Read};
use super::{Loaded, Whole};
use crate::codec::Tolerance;
use crate::id::SandboxId;
use crate::store::{self, FILE, Generation, Print, Sight};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a sandbox's directory, wherever it is; its name is the sandbox's id. Nothing is changed.
///
/// # Errors
/// As [`from_disk`](super::PersistDriver::from_disk).
pub fn read_sandbox_dir(path: &Path, tolerance: Tolerance) -> Result<Loaded, DriverError> {
    let (id, dir) = open_sandbox_dir(path)?;
    Ok(load(&id, &dir, path, tolerance)?.0)
}

/// A sandbox's directory, and whose it is.
pub(super) fn open_sandbox_dir(path: &Path) -> Result<(SandboxId, OwnedFd), DriverError> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = absolute.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = SandboxId::new(name)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => Ok((id, dir)),
        Err(Errno::NOENT) => Err(DriverError::Absent(id)),
        Err(errno) => Err(store::io("open", path)(errno).into()),
    }
}

/// Reads an open directory: its log, or else Kata's files, and then what these look like.
pub(super) fn load(
    id: &SandboxId,
    dir: &OwnedFd,
    path: &Path,
    tolerance: Tolerance,
) -> Result<(Loaded, Option<BTreeMap<String, Print>>), DriverError> {
    /// How often a log that moves while the files are looked at is read again.
    const TRIES: u32 = 4;
    for _ in 0..TRIES {
        let read = store::peek(dir, path, |log| {
            (whole(id, log), log.generation, store::see_beside(dir, log, Sight::Glance))
        })?;
        let Some((whole, generation, seen)) = read else {
            return load_files(id, dir, path, tolerance);
        };
        let whole = whole?;
        let seen = seen.map_err(store::io("read", path))?;
        let edited: Vec<String> = seen
            .iter()
            .filter(|thing| thing.is_edit())
            .map(|thing| thing.name().to_owned())
            .collect();
        // What looks edited may be of a save that came after the log was read.
        let newer = || store::peek(dir, path, |log| log.generation);
        if edited.is_empty() || newer()? == Some(generation) {
            return Ok((Loaded { whole, generation, edited }, None));
        }
    }
    let read = store::peek(dir, path, |log| (whole(id, log), log.generation))?;
    let (whole, generation) = read.ok_or_else(|| DriverError::Absent(id.clone()))?;
    Ok((Loaded { whole: whole?, generation, edited: Vec::new() }, None))
}

fn load_files(
    id: &SandboxId,
    dir: &OwnedFd,
    path: &Path,
    tolerance: Tolerance,
) -> Result<(Loaded, Option<BTreeMap<String, Print>>), DriverError> {
    let files = match files::read(dir, tolerance).map_err(store::io("read", path))? {
        Read::Settled(files) => files,
        Read::Unsettled => return Err(DriverError::Unsettled(id.clone())),
    };
    let Files { sandbox, containers, prints } = *files;
    let sandbox = sandbox.ok_or_else(|| DriverError::Absent(id.clone()))?;
    let failed = |source| DriverError::Decode { id: id.clone(), file: FILE.to_owned(), source };
    let sandbox = belongs(id, sandbox.map_err(failed)?)?;
    let containers = files::all_whole(id, containers)?;
    let whole = Whole { sandbox, containers, record: None };
    Ok((Loaded { whole, generation: Generation(0), edited: Vec::new() }, Some(prints)))
}
