//! How a sandbox's directory looks beside its log.

use super::disk::{entries, open_file, read_all, typed_entries};
use super::log;
use super::project::{FILE, OWN_FILE, TEMPORARY, split};
use super::replay::{Likeness, Print};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// A file that is not what the log says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unprojected {
    /// It says what an earlier generation said: the last writer did not come to it.
    Stale(String),
    /// It is not there.
    Missing(String),
    /// It is empty or full of zeros, as after a power cut.
    Torn(String),
    /// Someone else has written it.
    Edited(String),
    /// Someone else has added it: the log knows no such container.
    Added(String),
    /// Something a writer left when it was interrupted.
    Leftover(String),
}

impl Unprojected {
    /// The file, relative to the sandbox's directory.
    pub fn name(&self) -> &str {
        match self {
            Unprojected::Stale(name)
            | Unprojected::Missing(name)
            | Unprojected::Torn(name)
            | Unprojected::Edited(name)
            | Unprojected::Added(name)
            | Unprojected::Leftover(name) => name,
        }
    }

    /// Whether somebody else did it.
    pub fn is_edit(&self) -> bool {
        match self {
            Unprojected::Edited(_) | Unprojected::Added(_) => true,
            Unprojected::Stale(_)
            | Unprojected::Missing(_)
            | Unprojected::Torn(_)
            | Unprojected::Leftover(_) => false,
        }
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A file with the size and time of its commit is taken for what it should be.
    Glance,
    /// Every byte is compared.
    Stare,
}

/// Prints of documents, the newest last.
pub(super) type Prints = BTreeMap<String, Vec<Print>>;

/// Everything in a directory that is not what its log says, sorted. At a glance, what interrupted
/// writers left inside containers' directories is not looked for.
///
/// # Errors
/// When the directory cannot be read.
pub fn see<'a, L: Likeness + 'a>(
    dir: impl AsFd,
    documents: impl IntoIterator<Item = (&'a str, &'a [L])>,
    deleted: impl IntoIterator<Item = (&'a str, &'a [L])>,
    sight: Sight,
) -> Result<Vec<Unprojected>, Errno> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for (name, past) in documents {
        known.insert(split(name).0.unwrap_or(name));
        match look(&dir, name, past, sight)? {
            Look::Current => {}
            Look::Earlier(_) => found.push(Unprojected::Stale(name.to_owned())),
            Look::Absent => found.push(Unprojected::Missing(name.to_owned())),
            Look::Torn => found.push(Unprojected::Torn(name.to_owned())),
            Look::Strange => found.push(Unprojected::Edited(name.to_owned())),
        }
    }
    let deleted: BTreeMap<&str, &[L]> = deleted.into_iter().collect();
    for (entry, kind) in typed_entries(&dir)? {
        let is_dir = match kind {
            FileType::Directory => true,
            FileType::Unknown => is_dir(&dir, &entry)?,
            _ => false,
        };
        if is_dir {
            look_into(&dir, &entry, known.contains(&*entry), &deleted, sight, &mut found)?;
        } else if entry == log::NEW
            || entry == TEMPORARY
            || (entry == OWN_FILE && !known.contains(OWN_FILE))
        {
            found.push(Unprojected::Leftover(entry));
        }
    }
    found.sort();
    Ok(found)
}

/// What is in a container's directory besides its document.
fn look_into<L: Likeness>(
    dir: impl AsFd,
    entry: &str,
    known: bool,
    deleted: &BTreeMap<&str, &[L]>,
    sight: Sight,
    found: &mut Vec<Unprojected>,
) -> Result<(), Errno> {
    let temporary = format!("{entry}/{TEMPORARY}");
    if (sight == Sight::Stare || !known) && exists(&dir, &temporary)? {
        found.push(Unprojected::Leftover(temporary));
    }
    if known {
        return Ok(());
    }
    let name = format!("{entry}/{FILE}");
    let past = deleted.get(&*name).copied().unwrap_or_default();
    match look(&dir, &name, past, sight)? {
        Look::Current | Look::Earlier(_) | Look::Torn => found.push(Unprojected::Leftover(name)),
        Look::Strange => found.push(Unprojected::Added(name)),
        Look::Absent if entries(open_dir(&dir, entry)?)?.is_empty() => {
            found.push(Unprojected::Leftover(entry.to_owned()));
        }
        Look::Absent => {}
    }
    Ok(())
}

/// What a file looks like to one who knows the prints of its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Current,
    /// As it was once; which of the prints that is.
    Earlier(usize),
    Absent,
    Torn,
    Strange,
}

/// Looks at a document's file.
pub(super) fn look<L: Likeness>(
    dir: impl AsFd,
    name: &str,
    prints: &[L],
    sight: Sight,
) -> Result<Look, Errno> {
    let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Look::Absent),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Look::Strange);
    }
    let newest = prints.len().wrapping_sub(1);
    let rank = |at| if at == newest { Look::Current } else { Look::Earlier(at) };
    if sight == Sight::Glance
        && let Some(at) = prints.iter().rposition(|print| wears(&stat, print))
    {
        return Ok(rank(at));
    }
    // Links were looked at above; this one may only be read.
    let content = read_all(open_file(&dir, name)?)?;
    Ok(match prints.iter().rposition(|print| print.is(&content)) {
        Some(at) => rank(at),
        None if content.iter().all(|byte| *byte == 0) => Look::Torn,
        None => Look::Strange,
    })
}

/// Whether a file has the size and the time of a commit.
fn wears(stat: &Stat, print: &impl Likeness) -> bool {
    let time = stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds(stat));
    time == print.time() && u64::try_from(stat.st_size) == Ok(print.size())
}

#[allow(
    clippy::cast_possible_wrap,
    reason = "below 1_000_000_000 in every structure of the kernel"
)]
#[allow(clippy::unnecessary_cast, reason = "its type differs between architectures")]
fn nanoseconds(stat: &Stat) -> i64 {
    stat.st_mtime_nsec as i64
}

fn exists(dir: impl AsFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether an entry is a directory; a link to one is not.
pub(crate) fn is_dir(dir: impl AsFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A directory in a directory; a link is not followed.
pub(crate) fn open_dir(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The directory a document's file is in, if it is not the sandbox's own.
pub(super) fn parent(dir: impl AsFd, name: &str) -> Result<Option<OwnedFd>, Errno> {
    split(name).0.map(|sub| open_dir(dir, sub)).transpose()
}
