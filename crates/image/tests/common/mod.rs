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
        // Lazily: a child that another test is just about to exec may hold a file of it open.
        let status = Command::new("umount").arg("--lazy").arg(self.point.path()).status();
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

/// An attribute's value, shown by length and checksum: some are large.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(pub Vec<u8>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {:08x}", self.0.len(), crc32c::crc32c(&self.0))
    }
}

/// All there is to know about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub xattrs: BTreeMap<String, Value>,
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

fn xattrs(path: &Path) -> BTreeMap<String, Value> {
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
            (String::from_utf8_lossy(name).into_owned(), Value(value))
        })
        .collect()
}

/// The example program, for what needs another process or another user.
pub fn prepare_program() -> PathBuf {
    let build = ["build", "--quiet", "--package", "coracle-image", "--example", "prepare"];
    let status = Command::new(env!("CARGO")).args(build).status().unwrap();
    assert!(status.success(), "cannot build the example");
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().parent().unwrap().join("examples/prepare")
}

/// A tar in memory, put together entry by entry.
#[derive(Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn entry(mut self, kind: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path, "", data)
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Everything below a folder, with its content: to see that nothing changed, or nothing is left.
pub fn listing(root: &Path) -> Vec<String> {
    survey(root).into_iter().map(|(path, seen)| format!("{path:?} {}", seen.kind)).collect()
}
