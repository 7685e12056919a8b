//! How a directory's names are spread over blocks.
//!
//! Every block starts with its entries, 12 bytes each, followed by their names; an entry says
//! where its name begins, and a name ends where the next begins. All names of a directory, `.`
//! and `..` included, are in byte order over all its blocks: the kernel finds a name by halving.

use super::format::{BLOCK, DIRENT};
use super::tree::Kind;

/// One entry before it has its place in a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub name: &'a [u8],
    /// Slot of the inode it names.
    pub inode: u64,
    pub file_type: u8,
}

/// The number erofs gives to a kind of file in a directory.
pub(super) fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// How many bytes a directory with these names takes. Only the lengths of names matter, so it
/// can be asked before any inode has its place.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0_u64, 0_usize);
    for name in names {
        if used + DIRENT + name.len() > BLOCK {
            full += 1;
            used = 0;
        }
        used += DIRENT + name.len();
    }
    full * BLOCK as u64 + used as u64
}

/// The bytes of a directory with these entries, which must be sorted; all blocks but the last are
/// filled up with zeros.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let (block, tail) = rest.split_at(fitting(rest));
        let start = out.len();
        let mut name_offset = block.len() * DIRENT;
        for entry in block {
            out.extend_from_slice(&entry.inode.to_le_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "below the size of a block")]
            out.extend_from_slice(&(name_offset as u16).to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_offset += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if !tail.is_empty() {
            out.resize(start + BLOCK, 0);
        }
        rest = tail;
    }
    out
}

/// How many of the first entries fit into one block; at least one, since a name is short.
fn fitting(entries: &[Entry<'_>]) -> usize {
    let mut used = 0;
    entries
        .iter()
        .take_while(|entry| {
            used += DIRENT + entry.name.len();
            used <= BLOCK
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_told_beforehand_is_the_size_written() {
        for count in [0_usize, 1, 2, 17, 200, 341, 342, 1000] {
            let names: Vec<Vec<u8>> = (0..count).map(|i| vec![b'x'; 1 + i * 7 % 255]).collect();
            let entries: Vec<_> =
                names.iter().map(|name| Entry { name, inode: 1, file_type: 1 }).collect();
            let expected = size(names.iter().map(Vec::as_slice));
            assert_eq!(encode(&entries).len() as u64, expected, "{count} names");
        }
    }
}
