//! Reading a log, with or without the lock.

use super::error::StoreError;
use super::folder::LOG_FILE;
use super::log::Log;
use super::replay::{Past, Replay, Silence, Tail, replay};
use super::sight::{Sight, Unprojected, see};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::path::Path;

/// Reads the log of a directory without its lock and hands over what it says. A commit under way is
/// not seen, and one that replaces the log does not disturb. Nothing when there is no log.
///
/// # Errors
/// When it cannot be read, is damaged or of a later version.
pub(crate) fn peek<R>(
    dir: impl AsFd,
    path: &Path,
    read: impl FnOnce(&Replay<'_>) -> R,
) -> Result<Option<R>, StoreError> {
    let log = Log::read(dir).map_err(io("read", &path.join(LOG_FILE)))?;
    log.map(|bytes| judge(&bytes, path).map(|state| read(&state))).transpose()
}

/// As [`peek`], but takes the newest whole state before any damage.
///
/// # Errors
/// When there is no whole state at all.
pub(crate) fn salvage<R>(
    dir: impl AsFd,
    path: &Path,
    read: impl FnOnce(&Replay<'_>) -> R,
) -> Result<Option<R>, StoreError> {
    let log = Log::read(dir).map_err(io("read", &path.join(LOG_FILE)))?;
    log.map(|bytes| replay(&bytes).map(|s| read(&s)).map_err(|silence| silent(silence, path)))
        .transpose()
}

/// A log that is whole.
pub(super) fn judge<'a>(bytes: &'a [u8], path: &Path) -> Result<Replay<'a>, StoreError> {
    let state = replay(bytes).map_err(|silence| silent(silence, path))?;
    match state.tail {
        Tail::Clean | Tail::Torn { .. } => Ok(state),
        Tail::Damaged { at, later } => Err(StoreError::Damaged {
            path: path.join(LOG_FILE),
            at,
            good: state.generation,
            later,
        }),
    }
}

fn silent(silence: Silence, path: &Path) -> StoreError {
    let path = path.join(LOG_FILE);
    match silence {
        Silence::Newer(found) => StoreError::Newer { path, found },
        Silence::NoSnapshot => StoreError::Unreadable { path },
    }
}

/// How a directory looks to one who has read its log.
pub(crate) fn see_beside(
    dir: impl AsFd,
    log: &Replay<'_>,
    sight: Sight,
) -> Result<Vec<Unprojected>, Errno> {
    let histories: Vec<(&str, Vec<Past<'_>>)> =
        log.documents.iter().map(|(name, kept)| (*name, kept.history())).collect();
    let documents = histories.iter().map(|(name, past)| (*name, &past[..]));
    let deleted = log.deleted.iter().map(|(name, past)| (*name, &past[..]));
    see(dir, documents, deleted, sight)
}

pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(Errno) -> StoreError + use<> {
    let path = path.to_owned();
    move |errno| StoreError::Io { verb, path, source: errno.into() }
}
