//! Reading a log, with or without the lock.

use super::error::StoreError;
use super::folder::LOG_FILE;
use super::log::Log;
use super::replay::{Print, Replay, Silence, Tail, replay};
use super::sight::Prints;
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

/// Prints of a log's documents, the newest last.
pub(crate) fn prints(state: &Replay<'_>) -> (Prints, Prints) {
    let documents = state.documents.iter().map(|(name, kept)| {
        let mut prints = kept.earlier.clone();
        prints.push(Print::of(kept.content, kept.time));
        ((*name).to_owned(), prints)
    });
    let deleted = state.deleted.iter().map(|(name, prints)| ((*name).to_owned(), prints.clone()));
    (documents.collect(), deleted.collect())
}

pub(crate) fn io(verb: &'static str, path: &Path) -> impl FnOnce(Errno) -> StoreError + use<> {
    let path = path.to_owned();
    move |errno| StoreError::Io { verb, path, source: errno.into() }
}
