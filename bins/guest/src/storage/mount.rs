//! Mounting and unmounting, with nothing left behind when it fails.
//!
//! A mount point is created when it is missing and removed when its mount fails or goes. Removing
//! means `rmdir`, never more: mounts stack, and deleting a tree through the mount beneath would
//! delete the host's files (hcsshim's guest did). So after an unmount the directory is only
//! removed when nothing is mounted there any more, and only when it is empty.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::boot::modules::Modules;

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A path the host chose that we do not take.
    #[error("the guest path {path:?} is not absolute and plain")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The mount point could not be made.
    #[error("creating the mount point {}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("mounting {} ({kind}) on {}", from.display(), target.display())]
    Mount {
        /// The device, or the name of the file system.
        from: PathBuf,
        /// The file system.
        kind: String,
        /// The mount point.
        target: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The options do not fit in the one page the kernel takes.
    #[error("the mount options for {} take {length} bytes, more than 4095", target.display())]
    OptionsTooLong {
        /// The mount point.
        target: PathBuf,
        /// How long they would be.
        length: usize,
    },
    /// The kernel refused to unmount.
    #[error("unmounting {}", target.display())]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The mount point could not be removed.
    #[error("removing the mount point {}", target.display())]
    RemoveMountPoint {
        /// The mount point.
        target: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was written to a scratch could not be removed.
    #[error("discarding {}", scratch.display())]
    Discard {
        /// Its directory.
        scratch: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The list of mounts could not be read.
    #[error("reading /proc/self/mountinfo")]
    MountInfo(#[source] io::Error),
}

/// One mount to make.
#[derive(Debug, Clone)]
pub struct Mount<'a> {
    /// The device, or the name of the file system.
    pub from: &'a Path,
    /// The mount point.
    pub target: &'a Path,
    /// The file system.
    pub kind: &'a str,
    /// Mount flags.
    pub flags: MsFlags,
    /// Options, comma-separated.
    pub data: &'a str,
    /// The mode of a mount point that has to be created.
    pub mode: u32,
}

/// Mounts file systems, loading their module when the kernel does not know them.
#[derive(Debug, Default)]
pub struct Mounter {
    modules: Mutex<Option<Modules>>,
}

impl Mounter {
    /// A mounter that finds missing file systems among `modules`.
    pub fn new(modules: Option<Modules>) -> Self {
        Self { modules: Mutex::new(modules) }
    }

    /// Makes the mount and, when needed, its mount point; both or none.
    pub fn mount(&self, wanted: &Mount<'_>) -> Result<(), MountError> {
        check_path(wanted.target)?;
        if wanted.data.len() > 4095 {
            let (target, length) = (wanted.target.to_owned(), wanted.data.len());
            return Err(MountError::OptionsTooLong { target, length });
        }
        let created = create_directory(wanted.target, wanted.mode)?;
        let result = match wanted.try_mount() {
            Err(Errno::ENODEV) if self.load_module(wanted.kind) => wanted.try_mount(),
            other => other,
        };
        result.map_err(|source| {
            if created && let Err(error) = fs::remove_dir(wanted.target) {
                tracing::warn!(%error, target = %wanted.target.display(), "mount point stays");
            }
            MountError::Mount {
                from: wanted.from.to_owned(),
                kind: wanted.kind.to_owned(),
                target: wanted.target.to_owned(),
                source,
            }
        })
    }

    /// Mounts read-only, at one more place, a disk that is mounted writable already.
    pub fn mount_again(&self, disk: &Path, target: &Path, mode: u32) -> Result<(), MountError> {
        let table = fs::read("/proc/self/mountinfo").map_err(MountError::MountInfo)?;
        let there = mounted_whole(&table, disk).ok_or_else(|| MountError::Mount {
            from: disk.to_owned(),
            kind: "bind".to_owned(),
            target: target.to_owned(),
            source: Errno::EBUSY,
        })?;
        let bind = MsFlags::MS_BIND;
        self.mount(&Mount { from: &there, target, kind: "", flags: bind, data: "", mode })?;
        let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none: Option<&str> = None;
        mount(none, target, none, flags, none).map_err(|source| {
            if let Err(error) = unmount(target) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a writable view stays");
            }
            let (from, target) = (there.clone(), target.to_owned());
            MountError::Mount { from, kind: "bind".to_owned(), target, source }
        })
    }

    /// Loads modules of the boot list.
    pub fn load_modules(&self, list: &[PathBuf]) {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(modules) = modules.as_ref() {
            modules.load_all(list);
        }
    }

    /// Loads a kernel module; false when that fails, which is logged.
    pub fn load_module(&self, module: &str) -> bool {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(modules) = modules.as_mut() else { return false };
        modules
            .load(module)
            .inspect_err(|error| {
                tracing::warn!(error = error as &dyn std::error::Error, "no module")
            })
            .is_ok()
    }
}

impl Mount<'_> {
    fn try_mount(&self) -> Result<(), Errno> {
        let data = Some(self.data).filter(|data| !data.is_empty());
        mount(Some(self.from), self.target, Some(self.kind), self.flags, data)
    }
}

/// Takes one mount off `target` and removes the directory when that was the last. A target that
/// is missing, or is not a mount point, is what was wanted.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    check_path(target)?;
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::ENOENT) => {
            tracing::warn!(target = %target.display(), "nothing to unmount");
            return Ok(());
        }
        Err(source) => return Err(MountError::Unmount { target: target.to_owned(), source }),
    }
    if is_mount_point(target)? {
        return Ok(());
    }
    match fs::remove_dir(target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not ours to empty.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(target = %target.display(), "the mount point is not empty and stays");
            Ok(())
        }
        Err(source) => Err(MountError::RemoveMountPoint { target: target.to_owned(), source }),
    }
}

/// Whether anything is mounted on `path`.
pub fn is_mount_point(path: &Path) -> Result<bool, MountError> {
    let table = fs::read("/proc/self/mountinfo").map_err(MountError::MountInfo)?;
    Ok(mount_points(&table).any(|point| point == path.as_os_str().as_bytes()))
}

/// The mount points of a mountinfo table: the fifth field, blanks in it written in octal.
pub fn mount_points(table: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
}

/// Where the whole of a disk's file system is mounted, if anywhere.
fn mounted_whole(table: &[u8], disk: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let from = unescape(fields.get(dash + 2)?);
        let is_whole = fields.get(3) == Some(&&b"/"[..]);
        let point = unescape(fields.get(4)?);
        (is_whole && from == disk.as_os_str().as_bytes())
            .then(|| PathBuf::from(std::ffi::OsString::from_vec(point)))
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

/// Creates `path` and its parents; true when the last component is new.
pub fn create_directory(path: &Path, mode: u32) -> Result<bool, MountError> {
    let failed = |source| MountError::MountPoint { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match fs::create_dir(path) {
        // By hand, because the process's umask would take bits away.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map(|()| true)
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Absolute, without `.` or `..`: what the host means is where it goes.
pub fn check_path(path: &Path) -> Result<(), MountError> {
    use std::path::Component;
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if path.is_absolute() && path.components().all(plain) && path != Path::new("/") {
        return Ok(());
    }
    Err(MountError::Path { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points_are_unescaped() {
        let table = b"29 1 0:26 / /run rw - tmpfs tmpfs rw\n\
                      36 29 0:30 / /run/a\\040b\\134c rw - tmpfs x rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [b"/run".to_vec(), b"/run/a b\\c".to_vec()]);
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        assert!(check_path(Path::new("/run/mounts/m0")).is_ok());
        for path in ["run/m0", "/run/../etc", "/", ""] {
            assert!(check_path(Path::new(path)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_directory_that_is_no_mount_point_and_not_empty_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "kept").unwrap();
        unmount(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "kept");
    }

    #[test]
    fn unmounting_what_is_not_there_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        unmount(&directory.path().join("missing")).unwrap();
    }

    #[test]
    fn an_empty_mount_point_goes_with_its_mount() {
        let directory = tempfile::tempdir().unwrap();
        let point = directory.path().join("point");
        fs::create_dir(&point).unwrap();
        unmount(&point).unwrap();
        assert!(!point.exists());
    }

    #[test]
    fn a_failed_mount_leaves_no_mount_point() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a/b");
        let error = Mounter::default()
            .mount(&Mount {
                from: Path::new("/dev/null"),
                target: &target,
                kind: "no-such-file-system",
                flags: MsFlags::empty(),
                data: "",
                mode: 0o700,
            })
            .unwrap_err();
        assert!(matches!(error, MountError::Mount { .. }), "{error}");
        assert!(!target.exists());
    }
}
