//! The directory of one live sandbox, and who owns it.
//!
//! A sandbox's sockets live in `<run>/<id>/`. The owner holds a lock on
//! `<run>/<id>/owner.lock` for as long as it lives; the kernel drops the lock when
//! the owner dies, however it dies. A directory whose lock is free therefore
//! belongs to nobody, and the next command sweeps it away. The lock is taken before
//! the directory has its final name, so a sweep never meets a half-made one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const LOCK: &str = "owner.lock";

/// The one directory among those of sandboxes that is none: the records of networks.
pub(crate) const NETWORKS: &str = ".networks";

/// What can go wrong with a sandbox's directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A directory could not be made.
    #[error("cannot make the run directory {path}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The owner's lock could not be taken.
    #[error("cannot take the lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another live sandbox has this id.
    #[error("a sandbox named {id} is running already")]
    Taken {
        /// The id in question.
        id: String,
    },
    /// The directory could not be removed.
    #[error("cannot remove the run directory {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A sandbox's run directory, owned by this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held open for the lock's sake.
    _lock: File,
}

impl RunDir {
    /// Makes and locks `<run>/<id>`; sweeps a dead owner's directory of that name first.
    pub fn create(run: &Path, id: &str) -> Result<Self, RunDirError> {
        make_private(run)?;
        let path = run.join(id);
        if path.exists() && !sweep_one(&path) {
            return Err(RunDirError::Taken { id: id.to_owned() });
        }
        let draft = run.join(format!(".{id}.{}", std::process::id()));
        // A draft of this very name can only be ours: pids are not shared.
        let _ = fs::remove_dir_all(&draft);
        make_private(&draft)?;
        let lock = lock_file(&draft.join(LOCK))?;
        fs::rename(&draft, &path).map_err(|source| {
            let _ = fs::remove_dir_all(&draft);
            match source.kind() {
                // Somebody else's sandbox appeared under this name in between.
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    RunDirError::Taken { id: id.to_owned() }
                }
                _ => RunDirError::Make { path: path.clone(), source },
            }
        })?;
        Ok(RunDir { path, _lock: lock })
    }

    /// Takes the directory of a sandbox whose owner died, and makes it anew if the host's boot took it;
    /// none if somebody owns it.
    ///
    /// # Errors
    /// It cannot be made or locked.
    pub(crate) fn adopt(run: &Path, id: &str) -> Result<Option<Self>, RunDirError> {
        let path = run.join(id);
        make_private(&path)?;
        match lock_file(&path.join(LOCK)) {
            Ok(lock) => Ok(Some(RunDir { path, _lock: lock })),
            Err(RunDirError::Lock { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory and gives up the lock.
    pub fn remove(self) -> Result<(), RunDirError> {
        fs::remove_dir_all(&self.path)
            .map_err(|source| RunDirError::Remove { path: self.path.clone(), source })
    }
}

/// Removes the directories below `run` whose owners are dead; returns their names.
///
/// What they had of others' networks is undone before. Those that `is_kept` says something is written
/// down of are for whoever recovers them.
pub fn sweep(run: &Path, is_kept: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(run) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name() != NETWORKS)
        .filter(|entry| !entry.file_name().to_str().is_some_and(&is_kept))
        .filter(|entry| sweep_one(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether a sandbox of this name has an owner that lives.
pub fn is_alive(run: &Path, id: &str) -> bool {
    let lock = File::open(run.join(id).join(LOCK));
    // The lock is ours for a moment if nobody has it; whoever makes a directory locks it before.
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// Removes `path` if its owner is dead. True if it is gone.
fn sweep_one(path: &Path) -> bool {
    let Ok(lock) = File::open(path.join(LOCK)) else {
        // No lock yet or no longer: somebody is making or removing it, or died there.
        return !maker_lives(path) && fs::remove_dir(path).is_ok();
    };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    crate::network::undo_leftovers(path);
    fs::remove_dir_all(path).is_ok()
}

/// Is `path` a draft (`.<id>.<pid>`) whose maker is alive?
fn maker_lives(path: &Path) -> bool {
    path.extension().is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

fn make_private(path: &Path) -> Result<(), RunDirError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RunDirError::Make { path: path.to_owned(), source })
}

fn lock_file(path: &Path) -> Result<File, RunDirError> {
    let failed = |source| RunDirError::Lock { path: path.to_owned(), source };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_sandbox_keeps_its_directory() {
        let run = tempfile::tempdir().unwrap();
        let dir = RunDir::create(run.path(), "a").unwrap();
        assert!(sweep(run.path(), |_| false).is_empty());
        assert!(matches!(RunDir::create(run.path(), "a"), Err(RunDirError::Taken { .. })));
        dir.remove().unwrap();
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_sandbox_is_swept() {
        let run = tempfile::tempdir().unwrap();
        let dir = RunDir::create(run.path(), "a").unwrap();
        fs::write(dir.path().join("left.sock"), "").unwrap();
        drop(dir); // the lock goes, the directory stays: as after SIGKILL
        assert_eq!(sweep(run.path(), |_| false), ["a"]);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_sandbox_something_is_written_down_of_is_not_swept_but_adopted() {
        let run = tempfile::tempdir().unwrap();
        drop(RunDir::create(run.path(), "a").unwrap());
        assert!(sweep(run.path(), |name| name == "a").is_empty());
        let adopted = RunDir::adopt(run.path(), "a").unwrap().unwrap();
        assert!(RunDir::adopt(run.path(), "a").unwrap().is_none(), "it has an owner again");
        adopted.remove().unwrap();
        RunDir::adopt(run.path(), "gone").unwrap().unwrap().remove().unwrap();
    }

    #[test]
    fn a_draft_is_swept_only_when_its_maker_is_dead() {
        let run = tempfile::tempdir().unwrap();
        let ours = run.path().join(format!(".a.{}", std::process::id()));
        // Pids end at 4194304, so this one never lived.
        let dead = run.path().join(".a.4999999");
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&dead).unwrap();
        assert_eq!(sweep(run.path(), |_| false), [".a.4999999"]);
        assert!(ours.exists() && !dead.exists());
    }

    #[test]
    fn the_name_of_a_dead_sandbox_can_be_used_again() {
        let run = tempfile::tempdir().unwrap();
        drop(RunDir::create(run.path(), "a").unwrap());
        RunDir::create(run.path(), "a").unwrap().remove().unwrap();
    }
}
