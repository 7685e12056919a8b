//! The file behind memory that guest and host have in common.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::{FallocateFlags, Gid, Mode, OFlags, Uid, fallocate, fchown, fstatfs, open};

use crate::{SharedMemory, User};

/// File systems that keep what they have set aside, in memory (tmpfs) or on a disk (ext4, XFS), by what `statfs`
/// says of them. One that copies on write needs room for every write, whatever was set aside.
const KEEPS: [i64; 3] = [0x0102_1994, 0xEF53, 0x5846_5342];

/// Makes it, for this user to map; what an ended VM left at the path is replaced.
///
/// # Errors
/// `Unsupported` on another file system than those of [`KEEPS`], `StorageFull` where there is no room: a guest that
/// writes where there is none would take its monitor down.
pub(super) fn make(memory: &SharedMemory, user: Option<User>) -> io::Result<OwnedFd> {
    remove(&memory.path)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = open(&memory.path, flags, Mode::RUSR | Mode::WUSR)?;
    let made = (|| {
        if !KEEPS.contains(&fstatfs(&file)?.f_type) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        fallocate(&file, FallocateFlags::empty(), 0, memory.bytes)?;
        if let Some(user) = user {
            // It opens what it inherits by its path in /proc.
            fchown(&file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        }
        Ok(())
    })();
    match made {
        Ok(()) => Ok(file),
        Err(error) => {
            remove(&memory.path)?;
            Err(error)
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn all_of_it_is_set_aside_and_what_was_there_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let memory = SharedMemory { path: folder.path().join("area"), bytes: 2 << 20 };
        std::fs::write(&memory.path, "an ended VM's").unwrap();
        drop(make(&memory, None).unwrap());
        let file = std::fs::metadata(&memory.path).unwrap();
        assert_eq!((file.len(), file.blocks() * 512), (2 << 20, 2 << 20));
        assert_eq!(file.mode() & 0o777, 0o600);
        assert!(std::fs::read(&memory.path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn without_room_or_a_folder_there_is_none_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let memory = SharedMemory { path: folder.path().join("area"), bytes: 1 << 58 };
        make(&memory, None).unwrap_err();
        assert!(!memory.path.exists());
        make(&SharedMemory { path: folder.path().join("no/area"), bytes: 1 }, None).unwrap_err();
    }

    #[test]
    fn a_file_system_that_may_not_keep_the_room_has_none() {
        let memory = SharedMemory { path: "/proc/self/area".into(), bytes: 4096 };
        make(&memory, None).unwrap_err();
    }
}
