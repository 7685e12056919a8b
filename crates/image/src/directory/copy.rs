//! The second walk: contents, each checked to be what the scan saw.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, Statx, StatxFlags, openat, seek, statx};
use rustix::io::Errno;

use super::DirectoryError;
use super::scan::{Scan, Stamp, open_directory, stamp};
use crate::erofs::{Content, FileWriter, Kind, NodeId, Tree, Writer};
use crate::progress::{Progress, step};

/// How much is read at a time.
const PIECE: usize = 1 << 20;

/// Streams the contents of all scanned files into `writer`, and gives the tree with them in it.
pub(crate) fn copy(
    scan: Scan,
    path: &Path,
    writer: &mut Writer,
    progress: &mut dyn Progress,
) -> Result<Tree, DirectoryError> {
    let Scan { root, mut tree, stamps, .. } = scan;
    let contents = Vec::with_capacity(stamps.len());
    let buffer = vec![0; PIECE];
    let mut copy = Copy { tree: &tree, stamps, contents, writer, progress, buffer };
    copy.directory(&root, Tree::ROOT, path)?;
    for (id, content) in copy.contents {
        tree.set_content(id, content);
    }
    Ok(tree)
}

struct Copy<'a> {
    tree: &'a Tree,
    /// The files still to be copied.
    stamps: HashMap<NodeId, Stamp>,
    /// Those that were.
    contents: Vec<(NodeId, Content)>,
    writer: &'a mut Writer,
    progress: &'a mut dyn Progress,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    /// All files below the open directory `fd`, which is `id` in the tree.
    fn directory(&mut self, fd: &OwnedFd, id: NodeId, path: &Path) -> Result<(), DirectoryError> {
        let tree = self.tree;
        for (name, child) in tree.children(id) {
            let name = OsStr::from_bytes(name.as_bytes());
            let path = path.join(name);
            match &tree.node(child).kind {
                // An empty one need not be opened; it may be a mount point.
                Kind::Directory(names) if names.is_empty() => {}
                Kind::Directory(_) => {
                    let inner = open_directory(fd, name).map_err(|error| lost(&path, error))?;
                    self.directory(&inner, child, &path)?;
                }
                Kind::File(_) => {
                    // A file of several names is copied at the first.
                    if let Some(stamp) = self.stamps.remove(&child) {
                        let content = self.file(fd, name, &path, stamp)?;
                        self.contents.push((child, content));
                    }
                }
                Kind::Symlink(_)
                | Kind::CharDevice(_)
                | Kind::BlockDevice(_)
                | Kind::Fifo
                | Kind::Socket => {}
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
        seen: Stamp,
    ) -> Result<Content, DirectoryError> {
        // O_NONBLOCK: should it have become a pipe meanwhile, do not wait for its writer.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file =
            openat(directory, name, flags, Mode::empty()).map_err(|error| lost(path, error))?;
        let stat = unchanged(&file, path, seen)?;
        let mut source = Open { file: &file, path, buffer: &mut self.buffer };
        let mut content = self.writer.file();
        if stat.stx_blocks.saturating_mul(512) < stat.stx_size {
            source.copy_sparse(stat.stx_size, &mut content, self.progress)?;
        } else {
            source.copy(stat.stx_size, &mut content, self.progress)?;
        }
        unchanged(&file, path, seen)?;
        Ok(content.finish()?)
    }
}

/// A file being read.
struct Open<'a> {
    file: &'a OwnedFd,
    path: &'a Path,
    buffer: &'a mut [u8],
}

impl Open<'_> {
    /// Copies `len` bytes from where the file stands.
    fn copy(
        &mut self,
        len: u64,
        content: &mut FileWriter<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(), DirectoryError> {
        let mut left = len;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            match rustix::io::read(self.file, &mut self.buffer[..most]) {
                Ok(0) => return Err(DirectoryError::Changed { path: self.path.to_owned() }),
                Ok(len) => {
                    content.write(&self.buffer[..len])?;
                    left -= len as u64;
                    step(progress, len as u64)?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("read", self.path, error)),
            }
        }
        Ok(())
    }

    /// Copies a file of `size` bytes with holes, which stay holes.
    fn copy_sparse(
        &mut self,
        size: u64,
        content: &mut FileWriter<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(), DirectoryError> {
        let mut at = 0;
        while at < size {
            let data = self.find(SeekFrom::Data(at), size)?;
            content.skip(data - at)?;
            step(progress, data - at)?;
            if data == size {
                break;
            }
            at = self.find(SeekFrom::Hole(data), size)?;
            self.find(SeekFrom::Start(data), size)?;
            self.copy(at - data, content, progress)?;
        }
        Ok(())
    }

    /// Seeks, and says where the file then stands: `size` when nothing was found before it.
    fn find(&self, from: SeekFrom, size: u64) -> Result<u64, DirectoryError> {
        match seek(self.file, from) {
            Ok(at) => Ok(at.min(size)),
            Err(Errno::NXIO) => Ok(size),
            Err(error) => Err(failed("seek in", self.path, error)),
        }
    }
}

/// The open file is still what the scan saw.
fn unchanged(file: &OwnedFd, path: &Path, seen: Stamp) -> Result<Statx, DirectoryError> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|error| failed("look at", path, error))?;
    if stamp(&stat) == seen {
        Ok(stat)
    } else {
        Err(DirectoryError::Changed { path: path.to_owned() })
    }
}

/// What the scan saw cannot be opened: gone, become something else, or not permitted.
fn lost(path: &Path, error: Errno) -> DirectoryError {
    match error {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => {
            DirectoryError::Changed { path: path.to_owned() }
        }
        _ => failed("open", path, error),
    }
}

fn failed(action: &'static str, path: &Path, error: Errno) -> DirectoryError {
    DirectoryError::Io { action, path: path.to_owned(), source: error.into() }
}
