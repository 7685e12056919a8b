//! A directory of the host as a source.
//!
//! It is walked twice. The **scan** takes names, metadata and attributes, and makes of them both
//! the tree and the key under which the image is kept: a digest over all that changes when a file
//! changes (inode, size, mtime, ctime, owner, mode, attributes). No content is read, so asking
//! whether an image is still good costs about as much as `find`. The **copy** then streams the
//! contents, and compares each file before and after reading with what the scan saw: the image
//! is what the key says, or the error names the file that changed.
//!
//! Every step is relative to an open directory and follows no symlink, so a tree that is changed
//! meanwhile, by whomever, cannot lead out of itself. The source is opened for reading only. What
//! is mounted somewhere below is not part of the tree: its mount point is an empty directory.

mod copy;
mod scan;

use std::io;
use std::path::PathBuf;

use crate::erofs::ErofsError;
use crate::progress::Cancelled;

pub(crate) use copy::copy;
pub(crate) use scan::{Scan, scan};

/// How deep directories may be nested: each level keeps a descriptor open.
pub(crate) const DEPTH_MAX: usize = 256;

/// Why a directory cannot be made an image.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Opening or reading failed, for instance for want of permission.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried: `open`, `list`, `read`, ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file changed between looking at it and the end of reading it.
    #[error("{path:?} changed while the image was made from it")]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// More than 256 directories, one in the other.
    #[error("directories are nested more than {DEPTH_MAX} deep at {path:?}")]
    TooDeep {
        /// Where.
        path: PathBuf,
    },
    /// erofs has no place for something about the file.
    #[error("cannot put {path:?} into an image")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: ErofsError,
    },
    /// The image could not be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}
