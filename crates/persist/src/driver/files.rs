//! Kata's files, where there is no log.
//!
//! Kata writes each of them in place, so one who reads meanwhile finds some empty and some old. All
//! are therefore looked at before and after; if anything moved, they are read again.

use super::documents::file_of;
use super::{Containers, DriverError};
use crate::codec::{Damage, DecodeError, Tolerance, decode_container, decode_sandbox};
use crate::id::SandboxId;
use crate::model::{ContainerState, SandboxState};
use crate::store::{FILE, Print, entries, is_dir, open_dir, open_file, read_all};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often files that move are read.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(2);

/// What a directory of Kata's holds.
#[derive(Debug)]
pub(super) struct Files {
    /// The sandbox; nothing when it has no file.
    pub(super) sandbox: Option<Result<SandboxState, DecodeError>>,
    /// Its containers, by their directories.
    pub(super) containers: BTreeMap<String, Result<ContainerState, DecodeError>>,
    /// What the files look like.
    pub(super) prints: BTreeMap<String, Print>,
}

/// What reading came to.
#[derive(Debug)]
pub(super) enum Read {
    /// Nobody wrote meanwhile.
    Settled(Box<Files>),
    /// Somebody always did.
    Unsettled,
}

/// Reads a directory until nobody writes meanwhile.
pub(super) fn read(dir: impl AsFd, tolerance: Tolerance) -> Result<Read, Errno> {
    let mut before = look(&dir)?;
    for tries in 0..TRIES {
        let files = read_once(&dir, before.keys(), tolerance)?;
        let after = look(&dir)?;
        let moved = before != after;
        if !moved && (!files.could_be_under_way() || tries > 4) {
            return Ok(Read::Settled(Box::new(files)));
        }
        before = after;
        std::thread::sleep(PAUSE);
    }
    Ok(Read::Unsettled)
}

/// The containers, if all of them could be read.
pub(super) fn all_whole(
    id: &SandboxId,
    containers: BTreeMap<String, Result<ContainerState, DecodeError>>,
) -> Result<Containers, DriverError> {
    let whole = containers.into_iter().map(|(name, state)| match state {
        Ok(state) => Ok((name, state)),
        Err(source) => Err(DriverError::Decode { id: id.clone(), file: file_of(&name), source }),
    });
    whole.collect()
}

type Marks = BTreeMap<String, (u64, i64, i64, i64)>;

/// Each file with what changes when it is written.
fn look(dir: impl AsFd) -> Result<Marks, Errno> {
    let mut marks = Marks::new();
    let mut mark =
        |name: String| match rustix::fs::statat(&dir, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => {
                let (secs, size) = (stat.st_mtime, stat.st_size);
                #[allow(clippy::cast_possible_wrap, reason = "only compared with itself")]
                #[allow(
                    clippy::unnecessary_cast,
                    reason = "its type differs between architectures"
                )]
                marks.insert(name, (stat.st_ino, secs, stat.st_mtime_nsec as i64, size));
                Ok(())
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(errno),
        };
    mark(FILE.to_owned())?;
    for entry in entries(&dir)? {
        if is_dir(&dir, &entry)? {
            mark(format!("{entry}/{FILE}"))?;
        }
    }
    Ok(marks)
}

fn read_once<'a>(
    dir: impl AsFd,
    names: impl Iterator<Item = &'a String>,
    tolerance: Tolerance,
) -> Result<Files, Errno> {
    let mut files = Files { sandbox: None, containers: BTreeMap::new(), prints: BTreeMap::new() };
    for name in names {
        let content = match open(&dir, name).and_then(read_all) {
            Ok(content) => content,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno),
        };
        files.prints.insert(name.clone(), Print::of(&content, 0));
        match name.split_once('/') {
            None => files.sandbox = Some(decode_sandbox(&content, tolerance)),
            Some((container, _)) => {
                let state = decode_container(&content, tolerance);
                files.containers.insert(container.to_owned(), state);
            }
        }
    }
    Ok(files)
}

fn open(dir: impl AsFd, name: &str) -> Result<rustix::fd::OwnedFd, Errno> {
    match name.split_once('/') {
        Some((sub, file)) => open_file(open_dir(dir, sub)?, file),
        None => open_file(dir, name),
    }
}

impl Files {
    /// Whether some file looks as one does that Kata is just writing.
    fn could_be_under_way(&self) -> bool {
        let early = |error: &DecodeError| {
            matches!(
                error,
                DecodeError::Damaged { damage: Damage::Empty | Damage::Truncated { .. }, .. }
            )
        };
        let sandbox = self.sandbox.iter().filter_map(|state| state.as_ref().err());
        sandbox.chain(self.containers.values().filter_map(|state| state.as_ref().err())).any(early)
    }
}
