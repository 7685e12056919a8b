//! What the tests of this crate share: an image looked at through the kernel's own eyes.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image mounted by the kernel through a loop device, until dropped.
#[derive(Debug)]
pub struct Mount {
    point: tempfile::TempDir,
}

impl Mount {
    pub fn new(image: &Path) -> Self {
        let point = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .args([image, point.path()])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "mount (needs root): {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { point }
    }

    pub fn path(&self) -> &Path {
        self.point.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.point.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "umount failed");
    }
}

/// `fsck.erofs`, which also reads every byte of every file.
pub fn fsck(image: &Path) {
    let output = Command::new("fsck.erofs").arg("--extract").arg(image).output().unwrap();
    assert!(
        output.status.success(),
        "fsck.erofs: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All there is to know about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file, when it has several.
    pub same_as: Option<PathBuf>,
}

/// Everything below `root`, by path from there; the root itself is the empty path.
pub fn survey(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut all = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(path) = open.pop() {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let stat = fs::symlink_metadata(&full).unwrap();
        let file_type = stat.file_type();
        let kind = if file_type.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            open.extend(names.iter().rev().map(|name| path.join(name)));
            "directory".to_owned()
        } else if file_type.is_symlink() {
            format!("-> {}", fs::read_link(&full).unwrap().display())
        } else if file_type.is_file() {
            format!("file {} {:08x}", stat.len(), crc32c::crc32c(&fs::read(&full).unwrap()))
        } else if file_type.is_fifo() {
            "fifo".to_owned()
        } else if file_type.is_socket() {
            "socket".to_owned()
        } else {
            let letter = if file_type.is_char_device() { 'c' } else { 'b' };
            let device = stat.rdev();
            format!("{letter} {}:{}", rustix::fs::major(device), rustix::fs::minor(device))
        };
        let same_as = if stat.nlink() > 1 && !file_type.is_dir() {
            Some(first.entry(stat.ino()).or_insert_with(|| path.clone()).clone())
        } else {
            None
        };
        let seen = Seen {
            kind,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            links: if file_type.is_dir() { 0 } else { stat.nlink() },
            xattrs: xattrs(&full),
            same_as,
        };
        all.insert(path, seen);
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0_u8; 1 << 16];
            let name_str = std::ffi::OsStr::from_bytes(name);
            let len = rustix::fs::lgetxattr(path, name_str, &mut value[..]).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}
