//! Writes an image in one pass: contents as they come, the tree afterwards.
//!
//! ```text
//! block 0      superblock
//! block 1 ..   contents, each from a block boundary on, in the order they came
//! then         directories larger than what fits behind their inode, and long symlinks
//! then         metadata: inodes, attributes, short tails        <- `meta_blkaddr`
//! then         a hole up to the next 2 MiB, so that the image can also be a pmem device
//! ```
//!
//! erofs allows its metadata anywhere, so nothing has to be known before the first content is
//! written, and nothing is ever written twice or extracted on the host. What stays in memory is
//! the tree and the tails: the last, partial block of a file is kept back when it is short and
//! stored behind the inode, which spares a block per small file. The tails are bounded
//! ([`TAILS_MAX`]); past that, they get blocks of their own.
//!
//! The bytes depend only on the contents, their order and the tree. The UUID is made from them,
//! the build time is always 0.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};

use super::finish;
use super::format::{BLOCK, BLOCK_U64, Superblock};
use super::tree::Tree;

/// A tail up to this size is stored behind its inode: half a block, above which packing tails
/// into blocks would waste more than it spares.
pub(super) const TAIL_MAX: usize = BLOCK / 2;

/// How many bytes of tails are kept in memory, at most.
pub const TAILS_MAX: usize = 64 << 20;

/// Images are a multiple of this: what pmem devices ask of their backing file.
const IMAGE_ALIGN: u64 = 2 << 20;

/// Contents are gathered to pieces of this size before they are written.
const BUFFER: usize = 1 << 20;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image file could not be written.
    #[error("cannot write the image file")]
    Write(#[source] io::Error),
    /// More than 2^32 blocks of 4 KiB.
    #[error("the image would be larger than 16 TiB")]
    ImageTooLarge,
    /// An attribute of more than 64 KiB, or more than 256 KiB of attributes on one file.
    #[error("the extended attributes of one file are larger than erofs allows")]
    XattrsTooLarge,
    /// An attribute outside `user.`, `trusted.`, `security.` and the POSIX access lists.
    #[error("erofs has no place for the extended attribute {name:?}")]
    XattrName {
        /// Its full name.
        name: String,
    },
    /// A device number Linux does not have.
    #[error("the device number {major}:{minor} is larger than 4095:1048575")]
    DeviceNumber {
        /// Major number asked for.
        major: u32,
        /// Minor number asked for.
        minor: u32,
    },
    /// A symlink's target is empty, longer than 4095 bytes, or has a NUL in it.
    #[error("a symlink's target is not 1 to 4095 bytes without NUL")]
    SymlinkTarget,
}

/// Where the bytes of a file are in the image. Made by [`FileWriter::finish`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    pub(super) first_block: u64,
    pub(super) size: u64,
    /// The bytes after the last full block, when they are not in a block of their own.
    pub(super) tail: Box<[u8]>,
}

impl Content {
    /// The content of an empty file.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Size of the file, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn blocks(&self) -> u64 {
        (self.size - self.tail.len() as u64).div_ceil(BLOCK_U64)
    }
}

/// What [`Writer::finish`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// UUID of the file system, made from everything in it.
    pub uuid: [u8; 16],
    /// Number of files, directories and special files.
    pub inodes: u64,
    /// Size of the image file, in bytes.
    pub size: u64,
}

/// An image being written. See the module's head.
#[derive(Debug)]
pub struct Writer {
    out: File,
    /// Where the buffer belongs in the image; always a multiple of the block size.
    at: u64,
    buffer: Vec<u8>,
    tails: usize,
    /// Running crc32c of all contents, for the UUID.
    checksum: u32,
}

impl Writer {
    /// Starts an image in `out`, which must be empty and open for writing at offsets (not for
    /// appending).
    #[must_use]
    pub fn new(out: File) -> Self {
        Self { out, at: BLOCK_U64, buffer: Vec::new(), tails: 0, checksum: 0 }
    }

    /// Starts the content of one file.
    pub fn file(&mut self) -> FileWriter<'_> {
        let first_block = self.position() / BLOCK_U64;
        FileWriter { writer: self, first_block, size: 0 }
    }

    /// Gives the blocks of `content` back to the host: they become a hole. For files that a
    /// later entry of the source replaced; the image no longer holds a byte of them.
    ///
    /// # Errors
    /// [`ErofsError::Write`].
    pub fn discard(&mut self, content: &Content) -> Result<(), ErofsError> {
        self.tails = self.tails.saturating_sub(content.tail.len());
        let (start, len) = (content.first_block * BLOCK_U64, content.blocks() * BLOCK_U64);
        if len == 0 {
            return Ok(());
        }
        self.flush()?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.out, punch, start, len) {
            Ok(()) => Ok(()),
            // Not every file system can: then zeros, written out.
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(start, len),
            Err(error) => Err(ErofsError::Write(error.into())),
        }
    }

    /// Writes the tree and the superblock, and hands the file back.
    ///
    /// Nothing is synced: who needs the image to survive a power cut calls `sync_all`.
    ///
    /// # Errors
    /// Any [`ErofsError`]. The file is then of no use.
    pub fn finish(mut self, tree: &Tree) -> Result<(File, Written), ErofsError> {
        self.flush()?;
        let layout = finish::lay_out(tree, self.at / BLOCK_U64)?;
        self.write_at(self.at, &layout.blocks)?;
        let mut hash = Sha256::new();
        hash.update(&layout.blocks);
        hash.update(self.checksum.to_le_bytes());
        hash.update(self.at.to_le_bytes());
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&hash.finalize()[..16]);
        // Mark it as a name-based UUID (version 8 of RFC 9562: made by rules of our own).
        uuid[6] = (uuid[6] & 0x0f) | 0x80;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;

        let end = self.at + layout.blocks.len() as u64;
        let blocks = u32::try_from(end / BLOCK_U64).map_err(|_| ErofsError::ImageTooLarge)?;
        let superblock = Superblock {
            root: layout.root,
            inodes: layout.inodes,
            blocks,
            meta_block: layout.meta_block,
            uuid,
        };
        self.write_at(0, &superblock.encode())?;
        let size = end.next_multiple_of(IMAGE_ALIGN);
        self.out.set_len(size).map_err(ErofsError::Write)?;
        Ok((self.out, Written { uuid, inodes: layout.inodes, size }))
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Writes all full blocks of the buffer.
    fn flush(&mut self) -> Result<(), ErofsError> {
        let full = self.buffer.len() / BLOCK * BLOCK;
        self.write_at(self.at, &self.buffer[..full])?;
        self.checksum = crc32c::crc32c_append(self.checksum, &self.buffer[..full]);
        self.buffer.drain(..full);
        self.at += full as u64;
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        self.out.write_all_at(bytes, at).map_err(ErofsError::Write)
    }

    fn write_zeros(&self, start: u64, len: u64) -> Result<(), ErofsError> {
        let zeros = [0; BLOCK];
        (start..start + len).step_by(BLOCK).try_for_each(|at| self.write_at(at, &zeros))
    }
}

/// The content of one file being written.
///
/// Dropped without [`finish`](Self::finish), it leaves its bytes behind in the image, where
/// nothing names them: only fit for giving up the whole image.
#[derive(Debug)]
pub struct FileWriter<'a> {
    writer: &'a mut Writer,
    first_block: u64,
    size: u64,
}

impl FileWriter<'_> {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`ErofsError::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.writer.buffer.extend_from_slice(bytes);
        self.size += bytes.len() as u64;
        if self.writer.buffer.len() >= BUFFER {
            self.writer.flush()?;
        }
        Ok(())
    }

    /// Appends `len` zero bytes as a hole, which takes no space on the host.
    ///
    /// # Errors
    /// [`ErofsError::Write`], [`ErofsError::ImageTooLarge`].
    pub fn skip(&mut self, len: u64) -> Result<(), ErofsError> {
        let end = self.writer.position().checked_add(len).ok_or(ErofsError::ImageTooLarge)?;
        if end / BLOCK_U64 >= u64::from(u32::MAX) {
            return Err(ErofsError::ImageTooLarge);
        }
        // Fill up the block begun, jump over whole ones, begin the last.
        let begun = (BLOCK_U64 - self.size % BLOCK_U64) % BLOCK_U64;
        let fill = begun.min(len);
        self.zeros(fill);
        let rest = len - fill;
        if rest > 0 {
            self.writer.flush()?;
            self.writer.at += rest / BLOCK_U64 * BLOCK_U64;
            self.zeros(rest % BLOCK_U64);
        }
        self.size += len;
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`ErofsError::Write`], [`ErofsError::ImageTooLarge`].
    pub fn finish(self) -> Result<Content, ErofsError> {
        let Self { writer, first_block, size } = self;
        if writer.position() / BLOCK_U64 >= u64::from(u32::MAX) {
            return Err(ErofsError::ImageTooLarge);
        }
        let partial = writer.buffer.len() % BLOCK;
        if partial > TAIL_MAX || writer.tails + partial > TAILS_MAX {
            writer.buffer.resize(writer.buffer.len().next_multiple_of(BLOCK), 0);
            return Ok(Content { first_block, size, tail: Box::default() });
        }
        let tail = writer.buffer.split_off(writer.buffer.len() - partial).into_boxed_slice();
        writer.tails += tail.len();
        Ok(Content { first_block, size, tail })
    }

    /// Appends less than a block of zeros, uncounted.
    fn zeros(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(BLOCK);
        self.writer.buffer.resize(self.writer.buffer.len() + len, 0);
    }
}
