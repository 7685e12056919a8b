//! Turns a finished tree into the blocks that follow the contents.
//!
//! Two walks in the same order, parents before children and names sorted: the first gives every
//! inode its place (a directory's size follows from its names alone), the second writes, when
//! all inode numbers are known. An inode never crosses a block boundary, nor does what stands
//! behind it unless attributes alone are larger than a block: the kernel wants a tail within one
//! block, and a symlink in the block of its inode.

use super::directory::{self, Entry};
use super::format::{
    BLOCK, BLOCK_U64, DataLayout, INODE, Inode, NO_BLOCK, SLOT, check_target, encode_device,
    encode_xattrs,
};
use super::tree::{Kind, Node, NodeId, Tree};
use super::writer::{ErofsError, TAIL_MAX};

/// The metadata's first slots stay empty, so that no inode has the number 0, which some
/// programs take for a deleted file.
const FIRST_OFFSET: usize = 2 * SLOT;

/// What stands after the contents.
#[derive(Debug)]
pub(super) struct Layout {
    /// Whole blocks: large directories and symlinks, then the metadata.
    pub blocks: Vec<u8>,
    pub meta_block: u32,
    pub root: u16,
    pub inodes: u64,
}

/// One inode and its place.
#[derive(Debug)]
struct Placed<'a> {
    node: &'a Node,
    /// Of a directory: itself at the root.
    parent: NodeId,
    xattrs: Vec<u8>,
    size: u64,
    layout: DataLayout,
    /// How many bytes stand behind inode and attributes.
    tail: usize,
    /// First block, or device number.
    place: u32,
    /// Where the inode is, in bytes from the start of the metadata.
    offset: usize,
}

/// Lays out `tree`, whose contents end at block `next_block`.
pub(super) fn lay_out(tree: &Tree, next_block: u64) -> Result<Layout, ErofsError> {
    let mut order = Vec::new();
    // Indexed by node: its place in `order`.
    let mut index = vec![usize::MAX; tree.arena_len()];
    let mut next_block = next_block;
    let first_block = next_block;
    let mut offset = FIRST_OFFSET;

    let mut queue = std::collections::VecDeque::from([(Tree::ROOT, Tree::ROOT)]);
    while let Some((id, parent)) = queue.pop_front() {
        if index[id.0] != usize::MAX {
            continue;
        }
        index[id.0] = order.len();
        let mut placed = measure(tree.node(id), parent, &mut next_block)?;
        let behind = INODE + placed.xattrs.len();
        offset = fit(offset, behind, placed.tail);
        placed.offset = offset;
        offset = (offset + behind + placed.tail).next_multiple_of(SLOT);
        order.push(placed);
        queue.extend(tree.children(id).map(|(_, child)| (child, id)));
    }

    let meta_block = u32::try_from(next_block).map_err(|_| ErofsError::ImageTooLarge)?;
    let data = usize::try_from((next_block - first_block) * BLOCK_U64)
        .map_err(|_| ErofsError::ImageTooLarge)?;
    let mut blocks = vec![0; (data + offset).next_multiple_of(BLOCK)];
    let slot = |id: NodeId| (order[index[id.0]].offset / SLOT) as u64;
    for (number, placed) in order.iter().enumerate() {
        let own = slot_of(placed);
        let bytes = content(tree, placed, own, &slot);
        let (full, tail) = bytes.split_at(bytes.len() - placed.tail);
        if !full.is_empty() {
            let at = usize::try_from((u64::from(placed.place) - first_block) * BLOCK_U64)
                .map_err(|_| ErofsError::ImageTooLarge)?;
            blocks[at..at + full.len()].copy_from_slice(full);
        }
        let at = data + placed.offset;
        inode(tree, placed, number)?.encode(&mut blocks[at..at + INODE])?;
        let at = at + INODE;
        blocks[at..at + placed.xattrs.len()].copy_from_slice(&placed.xattrs);
        let at = at + placed.xattrs.len();
        blocks[at..at + tail.len()].copy_from_slice(tail);
    }
    let root = u16::try_from(FIRST_OFFSET / SLOT).map_err(|_| ErofsError::ImageTooLarge)?;
    Ok(Layout { blocks, meta_block, root, inodes: order.len() as u64 })
}

fn slot_of(placed: &Placed<'_>) -> u64 {
    (placed.offset / SLOT) as u64
}

/// Everything about a node but its offset. Takes blocks for what cannot stand behind the inode.
fn measure<'a>(
    node: &'a Node,
    parent: NodeId,
    next_block: &mut u64,
) -> Result<Placed<'a>, ErofsError> {
    let xattrs = encode_xattrs(&node.metadata.xattrs)?;
    let mut placed = Placed {
        node,
        parent,
        xattrs,
        size: 0,
        layout: DataLayout::Plain,
        tail: 0,
        place: NO_BLOCK,
        offset: 0,
    };
    match &node.kind {
        Kind::Directory(names) => {
            placed.size = directory::size(with_dots(names.keys().map(super::Name::as_bytes)));
            let partial = usize::try_from(placed.size % BLOCK_U64).unwrap_or(BLOCK);
            place(&mut placed, if partial <= TAIL_MAX { partial } else { 0 }, next_block)?;
        }
        Kind::Symlink(target) => {
            check_target(target)?;
            placed.size = target.len() as u64;
            let fits = INODE + placed.xattrs.len() + target.len() <= BLOCK;
            place(&mut placed, if fits { target.len() } else { 0 }, next_block)?;
        }
        Kind::File(content) => {
            placed.size = content.size;
            placed.tail = content.tail.len();
            if placed.size > placed.tail as u64 {
                placed.place =
                    u32::try_from(content.first_block).map_err(|_| ErofsError::ImageTooLarge)?;
            }
        }
        Kind::CharDevice(device) | Kind::BlockDevice(device) => {
            placed.place = encode_device(*device)?;
        }
        Kind::Fifo | Kind::Socket => placed.place = 0,
    }
    if placed.tail > 0 {
        placed.layout = DataLayout::Inline;
    }
    Ok(placed)
}

/// Keeps `tail` bytes behind the inode and takes blocks for the rest.
fn place(placed: &mut Placed<'_>, tail: usize, next_block: &mut u64) -> Result<(), ErofsError> {
    placed.tail = tail;
    let blocks = (placed.size - tail as u64).div_ceil(BLOCK_U64);
    if blocks > 0 {
        placed.place = u32::try_from(*next_block).map_err(|_| ErofsError::ImageTooLarge)?;
        *next_block += blocks;
    }
    Ok(())
}

/// The first place from `offset` on where an inode with its attributes (`behind` bytes) and
/// `tail` bytes crosses no block boundary, as far as that can be.
fn fit(offset: usize, behind: usize, tail: usize) -> usize {
    let crosses = |from: usize, len: usize| len > 0 && from / BLOCK != (from + len - 1) / BLOCK;
    let whole = behind + tail <= BLOCK;
    let bad = |offset: usize| {
        if whole {
            crosses(offset, behind + tail)
        } else {
            crosses(offset, INODE) || crosses(offset + behind, tail)
        }
    };
    (offset..).step_by(SLOT).find(|&offset| !bad(offset)).unwrap_or(offset)
}

/// The names of a directory in order, `.` and `..` at their places.
fn with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut all: Vec<&[u8]> = names.chain([b".".as_slice(), b"..".as_slice()]).collect();
    all.sort_unstable();
    all.into_iter()
}

/// The bytes this module has to write for a node: a file's blocks are in the image already.
fn content(tree: &Tree, placed: &Placed<'_>, own: u64, slot: &dyn Fn(NodeId) -> u64) -> Vec<u8> {
    match &placed.node.kind {
        Kind::Directory(names) => {
            let directory = directory::file_type(&placed.node.kind);
            let mut entries: Vec<Entry<'_>> = names
                .iter()
                .map(|(name, child)| Entry {
                    name: name.as_bytes(),
                    inode: slot(*child),
                    file_type: directory::file_type(&tree.node(*child).kind),
                })
                .chain([
                    Entry { name: b".", inode: own, file_type: directory },
                    Entry { name: b"..", inode: slot(placed.parent), file_type: directory },
                ])
                .collect();
            entries.sort_unstable_by_key(|entry| entry.name);
            directory::encode(&entries)
        }
        Kind::Symlink(target) => target.to_vec(),
        Kind::File(content) => content.tail.to_vec(),
        Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => Vec::new(),
    }
}

/// A directory is named by its parent, by itself, and by each directory in it.
fn directory_links<'a>(tree: &Tree, children: impl Iterator<Item = &'a NodeId>) -> u32 {
    let inner = children.filter(|child| tree.node(**child).kind.is_directory()).count();
    u32::try_from(inner).unwrap_or(u32::MAX).saturating_add(2)
}

/// The inode of a placed node; `number` is its place in the order, from 0.
fn inode(tree: &Tree, placed: &Placed<'_>, number: usize) -> Result<Inode, ErofsError> {
    let metadata = &placed.node.metadata;
    let (file_type, links) = match &placed.node.kind {
        Kind::Directory(names) => (0o040_000, directory_links(tree, names.values())),
        Kind::File(_) => (0o100_000, placed.node.names),
        Kind::Symlink(_) => (0o120_000, placed.node.names),
        Kind::CharDevice(_) => (0o020_000, placed.node.names),
        Kind::BlockDevice(_) => (0o060_000, placed.node.names),
        Kind::Fifo => (0o010_000, placed.node.names),
        Kind::Socket => (0o140_000, placed.node.names),
    };
    Ok(Inode {
        layout: placed.layout,
        xattr_size: placed.xattrs.len(),
        mode: file_type | (metadata.mode & 0o7777),
        size: placed.size,
        place: placed.place,
        number: u32::try_from(number + 1).map_err(|_| ErofsError::ImageTooLarge)?,
        uid: metadata.uid,
        gid: metadata.gid,
        mtime: metadata.mtime.seconds,
        mtime_nanoseconds: metadata.mtime.nanoseconds,
        links,
    })
}
