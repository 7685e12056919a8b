//! What file system is on a disk, told by its magic number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Why the file system of a disk is not known.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The disk could not be read.
    #[error("reading the superblock of {}", device.display())]
    Read {
        /// The disk.
        device: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is none we mount.
    #[error("{} holds no file system of ours (ext4, xfs or erofs)", device.display())]
    Unknown {
        /// The disk.
        device: PathBuf,
    },
}

/// Where a magic number stands, in bytes, and what it says.
const MAGICS: [(usize, &[u8], &str); 3] = [
    (0, b"XFSB", "xfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (1080, &[0x53, 0xef], "ext4"),
];

/// Enough of a disk to hold all of them.
const HEAD: usize = 4096;

/// The kind of the file system on `device`.
pub fn kind_of(device: &Path) -> Result<&'static str, SuperblockError> {
    let failed = |source| SuperblockError::Read { device: device.to_owned(), source };
    let mut head = [0; HEAD];
    let file = File::open(device).map_err(failed)?;
    let length = file.read_at(&mut head, 0).map_err(failed)?;
    let unknown = || SuperblockError::Unknown { device: device.to_owned() };
    recognise(&head[..length]).ok_or_else(unknown)
}

fn recognise(head: &[u8]) -> Option<&'static str> {
    let is_there = |at: usize, magic: &[u8]| {
        head.get(at..at + magic.len()).is_some_and(|found| found == magic)
    };
    MAGICS.iter().find(|(at, magic, _)| is_there(*at, magic)).map(|(_, _, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn a_file_system_is_told_by_its_magic_number() {
        for (at, magic, kind) in MAGICS {
            assert_eq!(recognise(&head(at, magic)), Some(kind));
        }
    }

    #[test]
    fn an_empty_or_short_disk_holds_none() {
        assert_eq!(recognise(&[0; HEAD]), None);
        assert_eq!(recognise(&head(1080, &[0x53, 0xef])[..1081]), None);
        assert_eq!(recognise(b""), None);
    }
}
