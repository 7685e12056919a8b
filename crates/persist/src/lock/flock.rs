//! flock(2) on a sandbox's directory, which Kata and `flock -n DIR` see too.

use super::holder::holders;
use super::{Ask, Hold, Lock, LockError, LockMode, Over, Patience};
use crate::id::SandboxId;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};

/// A locked directory.
#[derive(Debug)]
struct LockedDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl Hold for LockedDir {
    /// A directory that was removed, or moved away and made anew, is another one.
    fn is_held(&self) -> io::Result<bool> {
        let ours = rustix::fs::fstat(&self.dir)?;
        match rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::empty()) {
            Ok(now) => Ok((now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Locks the directory of a sandbox.
pub(crate) fn lock(id: &SandboxId, path: &Path, ask: Ask<'_>) -> Result<Lock, LockError> {
    let failed = |errno: Errno| LockError::Io { id: id.clone(), source: errno.into() };
    let operation = match ask.mode {
        LockMode::Shared => FlockOperation::NonBlockingLockShared,
        LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    let mut patience = Patience::new(ask);
    loop {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Err(LockError::NoSandbox(id.clone())),
            Err(errno) => return Err(failed(errno)),
        };
        match rustix::fs::flock(&dir, operation) {
            Ok(()) => {
                let hold = LockedDir { dir, path: path.to_owned() };
                // Whoever had it before may have deleted the sandbox.
                if hold.is_held().map_err(|source| LockError::Io { id: id.clone(), source })? {
                    return Ok(Lock::new(id.clone(), ask.mode, Box::new(hold)));
                }
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => match patience.pause() {
                Ok(()) => {}
                Err(Over::Cancelled) => return Err(LockError::Cancelled(id.clone())),
                Err(Over::Late) => {
                    return Err(LockError::Busy { id: id.clone(), holders: holders(&dir) });
                }
            },
            Err(errno) => return Err(failed(errno)),
        }
    }
}
