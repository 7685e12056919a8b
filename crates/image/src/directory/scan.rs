//! The first walk: names, metadata and attributes of everything, and the key over them.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, lgetxattr,
    llistxattr, openat, readlinkat, statx,
};
use rustix::io::Errno;

use super::{DEPTH_MAX, DirectoryError};
use crate::digest::{Digest, Hasher};
use crate::erofs::{
    Content, DeviceNumber, Kind, Metadata, Name, Node, NodeId, Timestamp, Tree, Xattrs,
};
use crate::progress::{Progress, step};
use crate::tar::is_kept_xattr;

/// Two changes within one tick of the clock leave the same ctime. A tree younger than this is
/// looked at again when it is older, so that no later change can hide behind the same time.
const CLOCK_TICK: Duration = Duration::from_millis(50);

/// What a file was when the scan saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    device: (u32, u32),
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

/// What a directory holds, without contents.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(super) root: OwnedFd,
    pub(crate) tree: Tree,
    /// The regular files.
    pub(super) stamps: HashMap<NodeId, Stamp>,
    /// Digest over all metadata.
    pub(crate) key: Digest,
    /// Sum of the sizes of all files.
    pub(crate) bytes: u64,
    newest: Timestamp,
}

/// Walks the directory at `path`, which may itself be a symlink to one.
pub(crate) fn scan(path: &Path, progress: &mut dyn Progress) -> Result<Scan, DirectoryError> {
    let seen = walk(path, progress)?;
    match since(seen.newest) {
        Some(age) if age < CLOCK_TICK => {
            std::thread::sleep(CLOCK_TICK - age);
            walk(path, progress)
        }
        _ => Ok(seen),
    }
}

/// How long ago that was; `None` when it is still to come.
fn since(time: Timestamp) -> Option<Duration> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let time = UNIX_EPOCH.checked_add(Duration::new(seconds, time.nanoseconds))?;
    SystemTime::now().duration_since(time).ok()
}

fn walk(path: &Path, progress: &mut dyn Progress) -> Result<Scan, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fail = |action, source: Errno| DirectoryError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    };
    let root =
        openat(rustix::fs::CWD, path, flags, Mode::empty()).map_err(|error| fail("open", error))?;
    let stat = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|error| fail("look at", error))?;
    let xattrs = xattrs(&format!("/proc/self/fd/{}", root.as_raw_fd()), OsStr::new("."))
        .map_err(|error| fail("read the attributes of", error))?;
    let mut walk = Walk {
        tree: Tree::new(metadata(&stat, xattrs)),
        stamps: HashMap::new(),
        links: HashMap::new(),
        hasher: Hasher::default(),
        bytes: 0,
        newest: timestamp(stat.stx_ctime),
        progress,
    };
    walk.hash(b"", &stat, &walk.tree.node(Tree::ROOT).metadata.xattrs.clone());
    walk.directory(&root, Tree::ROOT, path, 0)?;
    let Walk { tree, stamps, hasher, bytes, newest, .. } = walk;
    Ok(Scan { root, tree, stamps, key: hasher.digest(), bytes, newest })
}

struct Walk<'a> {
    tree: Tree,
    stamps: HashMap<NodeId, Stamp>,
    /// Files with several names, by device and inode.
    links: HashMap<((u32, u32), u64), NodeId>,
    hasher: Hasher,
    bytes: u64,
    newest: Timestamp,
    progress: &'a mut dyn Progress,
}

impl Walk<'_> {
    /// Everything in the open directory `fd`, which is `parent` in the tree.
    fn directory(
        &mut self,
        fd: &OwnedFd,
        parent: NodeId,
        path: &Path,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        step(self.progress, 0)?;
        if depth == DEPTH_MAX {
            return Err(DirectoryError::TooDeep { path: path.to_owned() });
        }
        let names = names(fd).map_err(|error| DirectoryError::Io {
            action: "list",
            path: path.to_owned(),
            source: error.into(),
        })?;
        let own_fd = format!("/proc/self/fd/{}", fd.as_raw_fd());
        for name in names {
            let file_name = OsStr::from_bytes(name.as_bytes());
            let path = path.join(file_name);
            self.entry(fd, &own_fd, parent, name, &path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        fd: &OwnedFd,
        own_fd: &str,
        parent: NodeId,
        name: Name,
        path: &Path,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        let file_name = OsStr::from_bytes(name.as_bytes());
        let fail = |action, source: Errno| match source {
            // It was there when the directory was listed.
            Errno::NOENT => DirectoryError::Changed { path: path.to_owned() },
            _ => DirectoryError::Io { action, path: path.to_owned(), source: source.into() },
        };
        let stat = statx(fd, file_name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .map_err(|error| fail("look at", error))?;
        let xattrs =
            xattrs(own_fd, file_name).map_err(|error| fail("read the attributes of", error))?;
        self.hash(name.as_bytes(), &stat, &xattrs);
        self.newest = self.newest.max(timestamp(stat.stx_ctime));

        let file_type = FileType::from_raw_mode(stat.stx_mode.into());
        let link = (device(&stat), stat.stx_ino);
        if file_type != FileType::Directory
            && stat.stx_nlink > 1
            && let Some(first) = self.links.get(&link)
        {
            // The name was listed once, and its parent is a directory.
            let _ = self.tree.link(parent, name, *first);
            return Ok(());
        }
        let rdev = DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
        let kind = match file_type {
            FileType::Directory => Kind::empty_directory(),
            FileType::RegularFile => Kind::File(Content::empty()),
            FileType::Symlink => {
                let target = readlinkat(fd, file_name, Vec::new())
                    .map_err(|error| fail("read the symlink", error))?;
                self.hasher.field(target.as_bytes());
                Kind::Symlink(target.into_bytes().into())
            }
            FileType::CharacterDevice => Kind::CharDevice(rdev),
            FileType::BlockDevice => Kind::BlockDevice(rdev),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => return Err(DirectoryError::Changed { path: path.to_owned() }),
        };
        let node = Node::new(metadata(&stat, xattrs), kind);
        node.check().map_err(|source| DirectoryError::Unfit { path: path.to_owned(), source })?;
        let Ok(id) = self.tree.add(parent, name.clone(), node) else { return Ok(()) };
        if file_type == FileType::RegularFile {
            self.stamps.insert(id, stamp(&stat));
            self.bytes += stat.stx_size;
        }
        if file_type != FileType::Directory {
            if stat.stx_nlink > 1 {
                self.links.insert(link, id);
            }
            return Ok(());
        }
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            tracing::debug!(?path, "a mount point, left empty in the image");
            return Ok(());
        }
        let child = open_directory(fd, file_name).map_err(|error| fail("open", error))?;
        self.directory(&child, id, path, depth + 1)?;
        // Ends what is in this directory, for the hash.
        self.hasher.field(b"");
        Ok(())
    }

    /// Adds to the key all that changes when this file does.
    fn hash(&mut self, name: &[u8], stat: &Statx, xattrs: &Xattrs) {
        let hasher = &mut self.hasher;
        hasher.field(name);
        let mut fields = Vec::with_capacity(96);
        fields.extend_from_slice(&stat.stx_ino.to_le_bytes());
        fields.extend_from_slice(&stat.stx_size.to_le_bytes());
        for number in [
            stat.stx_dev_major,
            stat.stx_dev_minor,
            stat.stx_rdev_major,
            stat.stx_rdev_minor,
            stat.stx_mode.into(),
            stat.stx_uid,
            stat.stx_gid,
            stat.stx_mtime.tv_nsec,
            stat.stx_ctime.tv_nsec,
            u32::try_from(xattrs.len()).unwrap_or(u32::MAX),
        ] {
            fields.extend_from_slice(&number.to_le_bytes());
        }
        fields.extend_from_slice(&stat.stx_mtime.tv_sec.to_le_bytes());
        fields.extend_from_slice(&stat.stx_ctime.tv_sec.to_le_bytes());
        fields.push(u8::from(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)));
        hasher.field(&fields);
        for (name, value) in xattrs {
            hasher.field(name);
            hasher.field(value);
        }
    }
}

/// Opens a directory in another one, following nothing.
pub(super) fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The file's identity and times, to be compared later.
pub(super) fn stamp(stat: &Statx) -> Stamp {
    Stamp {
        inode: stat.stx_ino,
        device: device(stat),
        size: stat.stx_size,
        mtime: timestamp(stat.stx_mtime),
        ctime: timestamp(stat.stx_ctime),
    }
}

/// All names but the dots, sorted.
fn names(fd: &OwnedFd) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        // The dots are no names, and a directory gives nothing else that is none.
        if let Ok(name) = Name::new(entry?.file_name().to_bytes()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn device(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

fn timestamp(time: rustix::fs::StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}

fn metadata(stat: &Statx, xattrs: Xattrs) -> Metadata {
    Metadata {
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: timestamp(stat.stx_mtime),
        xattrs,
    }
}

/// The attributes of `name` in the directory whose descriptor has the path `own_fd`. There is no
/// `getxattrat` before Linux 6.13; going through /proc keeps the directory pinned all the same.
fn xattrs(own_fd: &str, name: &OsStr) -> Result<Xattrs, Errno> {
    let path: Vec<u8> = [own_fd.as_bytes(), b"/", name.as_bytes()].concat();
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let mut list = [0_u8; 1024];
    let len = match llistxattr(&path, &mut list[..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        Ok(len) => len,
        Err(Errno::RANGE) => return long_xattrs(&path),
        Err(error) => return Err(error),
    };
    read_xattrs(&path, &list[..len])
}

fn long_xattrs(path: &CString) -> Result<Xattrs, Errno> {
    let mut list = vec![0_u8; 64 << 10];
    let len = llistxattr(path, &mut list[..])?;
    read_xattrs(path, &list[..len])
}

fn read_xattrs(path: &CString, list: &[u8]) -> Result<Xattrs, Errno> {
    let mut all = Xattrs::new();
    let mut value = vec![0_u8; 64 << 10];
    for name in list.split(|byte| *byte == 0).filter(|name| is_kept_xattr(name)) {
        match lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(len) => {
                all.insert(name.into(), value[..len].into());
            }
            // Gone since it was listed: the ctime tells, if it matters.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
