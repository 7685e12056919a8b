//! Something of the VM appears in a container that runs, and goes again.
//!
//! The mount is cloned off the VM's tree, carried by descriptor into the container's mount namespace
//! and put where it shall be seen. A thread of its own enters the namespace and ends with the work:
//! a thread that has been there is good for nothing else. Paths are looked up *in* the namespace,
//! whose root is the container's: a link in it can only lead to what the container sees anyway.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::sys;

/// Why something could not be shown in a container.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A path that is not absolute and plain.
    #[error("the path {path:?} is not absolute and plain")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The source in the VM.
    #[error("opening {} in the VM", path.display())]
    Source {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The container's namespace.
    #[error("entering the container")]
    Enter(#[source] io::Error),
    /// The place in the container.
    #[error("making {} in the container", path.display())]
    MountPoint {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The mount.
    #[error("mounting on {} in the container", path.display())]
    Mount {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The unmount.
    #[error("unmounting {} in the container", path.display())]
    Unmount {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
}

/// Shows `source` of the VM at `target` of the container whose init this is. Blocks.
///
/// Says whether the mount point had to be made.
pub fn attach(init: OwnedFd, source: &Path, target: &Path) -> Result<bool, AttachError> {
    check(source)?;
    check(target)?;
    let opened = |error| AttachError::Source { path: source.to_owned(), source: error };
    let is_folder = fs::metadata(source).map_err(opened)?.is_dir();
    let name = CString::new(source.as_os_str().as_bytes()).map_err(|e| opened(e.into()))?;
    let tree = sys::clone_mount(&name).map_err(opened)?;
    let target = target.to_owned();
    inside(init, move || {
        let path = || target.clone();
        let created = make(&target, is_folder)
            .map_err(|source| AttachError::MountPoint { path: path(), source })?;
        let at = CString::new(target.as_os_str().as_bytes())
            .map_err(|error| AttachError::Mount { path: path(), source: error.into() })?;
        sys::place_mount(tree.as_fd(), &at).map_err(|source| {
            if created {
                take_away(&target);
            }
            AttachError::Mount { path: path(), source }
        })?;
        Ok(created)
    })
}

/// Takes the mount at `target` out of the container. None being there is what was wanted. Blocks.
pub fn detach(init: OwnedFd, target: &Path, created: bool) -> Result<(), AttachError> {
    check(target)?;
    let target = target.to_owned();
    inside(init, move || {
        match umount2(&target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(source) => return Err(AttachError::Unmount { path: target, source }),
        }
        if created {
            take_away(&target);
        }
        Ok(())
    })
}

/// Runs `work` in the mount namespace of the process, on a thread of its own.
fn inside<T: Send>(
    init: OwnedFd,
    work: impl FnOnce() -> Result<T, AttachError> + Send,
) -> Result<T, AttachError> {
    let enter = |errno: Errno| AttachError::Enter(errno.into());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            // A thread that shares its root with others cannot change its namespace.
            unshare(CloneFlags::CLONE_FS).map_err(enter)?;
            setns(&init, CloneFlags::CLONE_NEWNS).map_err(enter)?;
            work()
        });
        let thread = thread.map_err(AttachError::Enter)?;
        let panicked = || AttachError::Enter(io::Error::other("the thread died"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// Makes a folder or an empty file; true if it was not there.
fn make(target: &Path, is_folder: bool) -> io::Result<bool> {
    if target.symlink_metadata().is_ok() {
        return Ok(false);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_folder {
        fs::create_dir(target)?;
    } else {
        fs::File::create_new(target)?;
    }
    Ok(true)
}

/// Removes what [`make`] made, if nothing was put into it.
fn take_away(target: &Path) {
    let removed = match fs::remove_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let is_empty = fs::metadata(target).is_ok_and(|file| file.len() == 0);
            if is_empty { fs::remove_file(target) } else { Ok(()) }
        }
        other => other,
    };
    if let Err(error) = removed {
        tracing::debug!(%error, target = %target.display(), "a mount point stays in a container");
    }
}

fn check(path: &Path) -> Result<(), AttachError> {
    use std::path::Component;
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path != Path::new("/") {
        return Ok(());
    }
    Err(AttachError::Path { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        for bad in ["", "/", "a", "/a/../b", "./a"] {
            assert!(check(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert!(check(Path::new("/srv/data")).is_ok());
    }

    #[test]
    fn a_mount_point_is_made_once_and_removed_only_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, file) = (folder.path().join("a/dir"), folder.path().join("b/file"));
        assert!(make(&dir, true).unwrap() && make(&file, false).unwrap());
        assert!(!make(&dir, true).unwrap() && !make(&file, false).unwrap());
        fs::write(&file, "kept").unwrap();
        take_away(&dir);
        take_away(&file);
        assert!(!dir.exists() && file.exists());
    }
}
