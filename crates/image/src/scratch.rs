//! Writable disks for the overlay above an image: an empty ext4 file system in a sparse file.
//!
//! It is made by `mke2fs`, which every Linux has. It has no journal and nothing reserved: it
//! lives as long as its sandbox, and is never checked after a crash of the guest.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The least size of a disk, in bytes: below, ext4's own tables would be most of it.
pub const SIZE_MIN: u64 = 4 << 20;

/// Where `mke2fs` may be, besides `PATH`, which often leaves these out for ordinary users.
const SBIN: &str = "/usr/sbin:/sbin";

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// Too small.
    #[error("a disk of {size} bytes is smaller than the least possible, {SIZE_MIN}")]
    TooSmall {
        /// Bytes asked for.
        size: u64,
    },
    /// The file could not be made.
    #[error("cannot create the disk {path:?}")]
    Create {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `mke2fs` could not be run.
    #[error("cannot run mke2fs")]
    Tool(#[source] io::Error),
    /// `mke2fs` failed.
    #[error("mke2fs cannot make a file system in {path:?}: {output}")]
    Format {
        /// In which file.
        path: PathBuf,
        /// What it said.
        output: String,
    },
}

impl ScratchError {
    /// Stable code of the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "E-SCRATCH-SMALL",
            Self::Create { .. } => "E-SCRATCH-CREATE",
            Self::Tool(_) => "E-SCRATCH-TOOL",
            Self::Format { .. } => "E-SCRATCH-FORMAT",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "ask for at least 4 MiB",
            Self::Create { .. } => "check the folder's permissions, and that no such file exists",
            Self::Tool(_) => "install it: apt-get install e2fsprogs",
            Self::Format { .. } => "check that there is space left: df -h",
        }
    }
}

/// Makes a disk of `size` bytes with an empty ext4 file system at `path`, which must not exist.
/// It takes space on the host only as it is written to. Nothing is left when it fails.
///
/// # Errors
/// See [`ScratchError`].
pub fn create(path: &Path, size: u64) -> Result<(), ScratchError> {
    if size < SIZE_MIN {
        return Err(ScratchError::TooSmall { size });
    }
    let failed = |source| ScratchError::Create { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let made = file.set_len(size).map_err(failed).and_then(|()| format(path));
    if made.is_err() {
        // The error at hand is the one that matters.
        let _ = fs::remove_file(path);
    }
    made
}

fn format(path: &Path) -> Result<(), ScratchError> {
    let search = match std::env::var("PATH") {
        Ok(path) => format!("{path}:{SBIN}"),
        Err(_) => SBIN.to_owned(),
    };
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"])
        .args(["-E", "nodiscard,lazy_itable_init=1,root_owner=0:0", "--"])
        .arg(path)
        .env("PATH", search)
        .stdin(Stdio::null())
        .output()
        .map_err(ScratchError::Tool)?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ScratchError::Format { path: path.to_owned(), output })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_is_an_empty_ext4_and_takes_hardly_any_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, 1 << 30).unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.len(), 1 << 30);
        assert!(stat.blocks() * 512 < 16 << 20, "{} blocks", stat.blocks());
        let check = Command::new("e2fsck").args(["-n", "-f"]).arg(&path).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(create(&path, 1 << 30), Err(ScratchError::Create { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn too_small_a_disk_is_refused_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        assert!(matches!(create(&path, 4096), Err(ScratchError::TooSmall { size: 4096 })));
        assert!(!path.exists());
    }
}
