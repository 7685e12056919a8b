//! The files for others to read.

use super::disk::{Disk, entries};
use super::replay::Print;
use super::sight::{Look, Sight, look, parent};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::fmt;

/// The document of a sandbox, and of each of its containers in a directory of its own.
pub(crate) const FILE: &str = "persist.json";
/// The document of what Kata's schema has no place for.
pub(crate) const OWN_FILE: &str = "coracle.json";
/// A document that is being written.
pub(crate) const TEMPORARY: &str = ".persist.json.new";
/// What the name of a file ends with that someone else had written and that was in the way.
pub const SET_ASIDE: &str = ".edited";

/// What the files for others are not, after a commit that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Someone else had written a file; it has another name now.
    SetAside {
        /// The file, relative to the sandbox's directory.
        file: String,
        /// Its name now.
        to: String,
    },
    /// A file could not be written; the next commit tries again.
    Behind {
        /// The file, relative to the sandbox's directory.
        file: String,
        /// Why not.
        error: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::SetAside { file, to } => {
                write!(f, "{file} had been edited by someone else and is now {to}")
            }
            Note::Behind { file, error } => {
                write!(f, "{file} is behind the log: {error}")
            }
        }
    }
}

/// A document's name as directory, if any, and file.
pub(super) fn split(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((dir, file)) => (Some(dir), file),
        None => (None, name),
    }
}

/// Writes a document's file, setting aside what someone else has put there. `prints` are those of
/// the document, the newest last. If the file system `flushes` a file without blocks when it is
/// renamed over another, it gets its blocks before.
pub(super) fn put(
    disk: &Disk,
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    prints: &[Print],
    flushes: bool,
) -> Result<Option<Note>, Errno> {
    let (sub, file) = split(name);
    let temporary = match sub {
        Some(sub) => format!("{sub}/{TEMPORARY}"),
        None => TEMPORARY.to_owned(),
    };
    // This one goes only where no link leads; by then the directory is known to be one.
    let new = match disk.create(dir, &temporary) {
        Ok(new) => new,
        Err(Errno::NOENT) => {
            disk.make_dir(dir, sub.unwrap_or_default())?;
            disk.create(dir, &temporary)?
        }
        Err(Errno::EXIST) => {
            disk.unlink(dir, &temporary)?;
            disk.create(dir, &temporary)?
        }
        Err(errno) => return Err(errno),
    };
    if flushes {
        disk.allocate(&new, content.len() as u64)?;
    }
    disk.write(&new, content, 0)?;
    disk.stamp(&new, prints.last().map_or(0, |print| print.time))?;
    let note = clear(disk, dir, file, name, prints)?;
    disk.rename(dir, &temporary, name)?;
    Ok(note)
}

/// Whether a file system writes a file out when it is renamed over another, to spare careless
/// programs: ext4 does, for files whose blocks are not allocated yet.
pub(super) fn flushes(dir: impl AsFd) -> bool {
    const EXT4: u64 = 0xef53;
    rustix::fs::fstatfs(dir).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(EXT4))
}

/// Removes a document's file, and its directory with all that is in it.
pub(super) fn delete(
    disk: &Disk,
    dir: BorrowedFd<'_>,
    name: &str,
    prints: &[Print],
) -> Result<Option<Note>, Errno> {
    let (sub, file) = split(name);
    let inner = match parent(dir, name) {
        Ok(inner) => inner,
        Err(Errno::NOENT) => return Ok(None),
        // A link, or no directory: not ours, and nothing of ours is in it.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let place = inner.as_ref().map_or(dir, AsFd::as_fd);
    let note = clear(disk, dir, file, name, prints)?;
    disk.unlink(place, file)?;
    match (sub, &note) {
        // What was set aside stays.
        (Some(_), Some(_)) | (None, _) => {}
        (Some(sub), None) => disk.remove_tree(dir, sub)?,
    }
    Ok(note)
}

/// Sets a stranger's file aside.
pub(super) fn clear(
    disk: &Disk,
    dir: BorrowedFd<'_>,
    file: &str,
    name: &str,
    prints: &[Print],
) -> Result<Option<Note>, Errno> {
    match look(dir, name, prints, Sight::Glance)? {
        Look::Absent | Look::Current | Look::Earlier(_) | Look::Torn => return Ok(None),
        Look::Strange => {}
    }
    let inner = parent(dir, name)?;
    let place = inner.as_ref().map_or(dir, AsFd::as_fd);
    let aside = free_name(place, file)?;
    disk.rename(place, file, &aside)?;
    let to = match split(name).0 {
        Some(sub) => format!("{sub}/{aside}"),
        None => aside,
    };
    Ok(Some(Note::SetAside { file: name.to_owned(), to }))
}

/// Removes what an interrupted writer has left: a file, or an empty directory.
pub(super) fn sweep(disk: &Disk, dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let (sub, file) = split(name);
    let inner = match parent(dir, name) {
        Ok(inner) => inner,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let place = inner.as_ref().map_or(dir, AsFd::as_fd);
    match disk.unlink(place, file) {
        Err(Errno::ISDIR) => disk.remove_dir(place, file)?,
        done => done?,
    }
    if let (Some(sub), Some(inner)) = (sub, &inner)
        && entries(inner)?.is_empty()
    {
        disk.remove_dir(dir, sub)?;
    }
    Ok(())
}

/// Makes files of documents survive a power cut.
pub(super) fn sync<'a>(
    disk: &Disk,
    dir: BorrowedFd<'_>,
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), Errno> {
    /// From here on it is cheaper to write out all of the file system.
    const MANY: usize = 32;
    if names.len() > MANY {
        return disk.sync_all(dir);
    }
    for name in names {
        match super::disk::open_file(dir, name) {
            Ok(file) => disk.sync(file)?,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn free_name(place: BorrowedFd<'_>, file: &str) -> Result<String, Errno> {
    for n in 1..1000 {
        let name = match n {
            1 => format!("{file}{SET_ASIDE}"),
            n => format!("{file}{SET_ASIDE}.{n}"),
        };
        match rustix::fs::statat(place, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(name),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}
