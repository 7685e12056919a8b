//! The bytes of erofs: superblock, inode, directory entry and extended attribute.
//!
//! The format is the kernel's `fs/erofs/erofs_fs.h`, little endian throughout. Only what this
//! crate writes is here: 4 KiB blocks, extended (64-byte) inodes, since only those keep a time
//! per file and 32-bit owners, and data that is either a plain run of blocks or a run of blocks
//! with the last, partial one stored behind its inode. Linux 5.4 and later read all of it.

use super::tree::{DeviceNumber, Xattrs};
use super::writer::ErofsError;

/// Size of a block, in bytes.
pub const BLOCK: usize = 4096;
/// The same as a 64-bit number.
pub(super) const BLOCK_U64: u64 = 4096;
/// Where the superblock is, in bytes.
pub(super) const SUPER_OFFSET: usize = 1024;
/// Inode numbers count slots of this many bytes from the start of the metadata.
pub(super) const SLOT: usize = 32;
/// Size of an extended inode.
pub(super) const INODE: usize = 64;
/// Size of a directory entry without its name.
pub(super) const DIRENT: usize = 12;
/// A block address that is never used.
pub(super) const NO_BLOCK: u32 = u32::MAX;

/// How many first bytes of a file tell whether it is an erofs image.
pub const HEAD: usize = SUPER_OFFSET + 4;

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const BLOCK_BITS: u8 = 12;

/// The fields of a superblock that vary.
#[derive(Debug)]
pub(super) struct Superblock {
    pub root: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The first block of the image. The build time is always 0, so that the same tree gives the
    /// same bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let sb = &mut block[SUPER_OFFSET..];
        sb[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        sb[8..12].copy_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        sb[12] = BLOCK_BITS;
        sb[14..16].copy_from_slice(&self.root.to_le_bytes());
        sb[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        sb[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        sb[40..44].copy_from_slice(&self.meta_block.to_le_bytes());
        sb[48..64].copy_from_slice(&self.uuid);
        // The kernel's crc32c leaves out the final inversion; it covers the rest of the block,
        // with the field itself zero.
        let checksum = !crc32c::crc32c(sb);
        sb[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// True when `head`, the first [`HEAD`] bytes of a file or more, are those of an erofs image.
#[must_use]
pub fn is_image(head: &[u8]) -> bool {
    head.get(SUPER_OFFSET..HEAD) == Some(&MAGIC.to_le_bytes())
}

/// How a file's bytes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// A run of blocks.
    Plain = 0,
    /// A run of blocks, and the partial last one right behind the inode and its attributes.
    Inline = 2,
}

/// The fields of an extended inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub layout: DataLayout,
    /// Size of the attributes behind the inode, in bytes: 0 or at least 12.
    pub xattr_size: usize,
    /// File type and permission bits.
    pub mode: u16,
    pub size: u64,
    /// First block, or device number.
    pub place: u32,
    /// What `stat` shows on 32-bit systems.
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nanoseconds: u32,
    pub links: u32,
}

impl Inode {
    pub(super) fn encode(&self, out: &mut [u8]) -> Result<(), ErofsError> {
        let xattr_count = xattr_count(self.xattr_size)?;
        let format = 1 | ((self.layout as u16) << 1);
        out[0..2].copy_from_slice(&format.to_le_bytes());
        out[2..4].copy_from_slice(&xattr_count.to_le_bytes());
        out[4..6].copy_from_slice(&self.mode.to_le_bytes());
        out[8..16].copy_from_slice(&self.size.to_le_bytes());
        out[16..20].copy_from_slice(&self.place.to_le_bytes());
        out[20..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..28].copy_from_slice(&self.uid.to_le_bytes());
        out[28..32].copy_from_slice(&self.gid.to_le_bytes());
        out[32..40].copy_from_slice(&self.mtime.to_le_bytes());
        out[40..44].copy_from_slice(&self.mtime_nanoseconds.to_le_bytes());
        out[44..48].copy_from_slice(&self.links.to_le_bytes());
        Ok(())
    }
}

/// The number of a device as the kernel packs it into 32 bits.
pub(super) fn encode_device(device: DeviceNumber) -> Result<u32, ErofsError> {
    if device.major > 0xfff || device.minor > 0xf_ffff {
        return Err(ErofsError::DeviceNumber { major: device.major, minor: device.minor });
    }
    Ok((device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12))
}

/// Size of the header before the attributes of an inode.
const XATTR_HEADER: usize = 12;

/// Prefixes that are stored as a number, and whether the whole name must be the prefix.
const XATTR_PREFIXES: [(u8, &[u8], bool); 5] = [
    (2, b"system.posix_acl_access", true),
    (3, b"system.posix_acl_default", true),
    (1, b"user.", false),
    (4, b"trusted.", false),
    (6, b"security.", false),
];

/// The attributes as they stand behind an inode: nothing, or a header and one entry each.
pub(super) fn encode_xattrs(xattrs: &Xattrs) -> Result<Vec<u8>, ErofsError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let (index, rest) = split_xattr_name(name).ok_or_else(|| ErofsError::XattrName {
            name: String::from_utf8_lossy(name).into_owned(),
        })?;
        let name_len = u8::try_from(rest.len()).map_err(|_| ErofsError::XattrsTooLarge)?;
        let value_len = u16::try_from(value.len()).map_err(|_| ErofsError::XattrsTooLarge)?;
        out.push(name_len);
        out.push(index);
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}

/// The size of attributes as an inode gives it: in units of 4 bytes, and one for the header.
fn xattr_count(size: usize) -> Result<u16, ErofsError> {
    match size {
        0 => Ok(0),
        _ => u16::try_from((size - XATTR_HEADER) / 4 + 1).map_err(|_| ErofsError::XattrsTooLarge),
    }
}

/// Checks that the attributes fit.
pub(super) fn check_xattrs(xattrs: &Xattrs) -> Result<(), ErofsError> {
    xattr_count(encode_xattrs(xattrs)?.len()).map(drop)
}

/// Checks that a symlink's target is one Linux can follow: 1 to 4095 bytes without NUL.
pub(super) fn check_target(target: &[u8]) -> Result<(), ErofsError> {
    let fits = (1..=4095).contains(&target.len()) && !target.contains(&0);
    if fits { Ok(()) } else { Err(ErofsError::SymlinkTarget) }
}

/// The prefix's number and the rest of the name; `None` for a name erofs has no place for.
fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|&(index, prefix, whole)| {
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() == whole).then_some((index, rest))
    })
}

/// True when erofs can hold an attribute of this name.
#[must_use]
pub fn supports_xattr(name: &[u8]) -> bool {
    split_xattr_name(name).is_some_and(|(_, rest)| rest.len() <= 255)
}
