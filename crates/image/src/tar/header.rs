//! One entry of a tar, from its header block and the records before it.

use tar::Header;

use super::pax::{Records, parse_time};
use super::sparse::Segment;
use super::{BLOCK, TarError};
use crate::erofs::{DeviceNumber, Metadata, Timestamp, supports_xattr};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its data follows.
    File,
    /// One more name for the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of a tar. Names are as they stand there: nothing about them has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time, and those attributes which erofs can hold.
    pub metadata: Metadata,
    /// Size of a regular file in bytes, holes included; 0 for anything else.
    pub size: u64,
    /// Where the stored bytes of a sparse file belong; `None` for any other.
    pub segments: Option<Vec<Segment>>,
}

/// Checks that a block is a header.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    let wanted = header.cksum().map_err(|_| "the checksum is no number")?;
    // The checksum's own field counts as spaces. Very old writers summed signed bytes.
    let own = 148..156;
    let others = || block.iter().enumerate().filter(|(i, _)| !own.contains(i)).map(|(_, b)| *b);
    let unsigned: u32 = others().map(u32::from).sum::<u32>() + 8 * 32;
    let signed: i32 = others().map(|byte| i32::from(byte.cast_signed())).sum::<i32>() + 8 * 32;
    if wanted == unsigned || i64::from(wanted) == i64::from(signed) {
        Ok(header)
    } else {
        Err("the checksum is wrong")
    }
}

/// A field of the header at `at` that should be a number is none.
pub(super) fn bad_number(at: u64) -> TarError {
    TarError::Header { at, reason: "a field is no number" }
}

/// The entry that `header` and the records before it describe.
pub(super) fn entry(header: &Header, records: &Records, at: u64) -> Result<Entry, TarError> {
    let number = |key, field: std::io::Result<u64>| match records.number(key) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => field.map_err(|_| bad_number(at)),
        Err(()) => Err(TarError::Record { at, what: "PAX" }),
    };
    let path = records
        .get("GNU.sparse.name")
        .or_else(|| records.get("path"))
        .map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
    let link = || {
        let field = || header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        records.get("linkpath").map_or_else(field, <[u8]>::to_vec)
    };
    let device = || {
        let part = |field: std::io::Result<Option<u32>>| match field {
            Ok(value) => Ok(value.unwrap_or(0)),
            Err(_) => Err(bad_number(at)),
        };
        Ok(DeviceNumber {
            major: part(header.device_major())?,
            minor: part(header.device_minor())?,
        })
    };
    let kind = match header.entry_type().as_byte() {
        // Before there was a type for directories, a slash at the end of the name said so.
        0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink(link()),
        b'2' => EntryKind::Symlink(link()),
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => {
            let entry = String::from_utf8_lossy(&path).into_owned();
            return Err(TarError::Kind { entry, kind: char::from(other) });
        }
    };
    let size = match kind {
        EntryKind::File => number("size", header.entry_size())?,
        _ => 0,
    };
    let mtime = match records.get("mtime") {
        Some(text) => parse_time(text).ok_or(TarError::Record { at, what: "PAX" })?,
        None => {
            let seconds = header.mtime().map_err(|_| bad_number(at))?;
            Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanoseconds: 0 }
        }
    };
    let id = |value| u32::try_from(value).map_err(|_| bad_number(at));
    let metadata = Metadata {
        mode: mode_bits(header.mode().map_err(|_| bad_number(at))?),
        uid: id(number("uid", header.uid())?)?,
        gid: id(number("gid", header.gid())?)?,
        mtime,
        xattrs: records
            .xattrs()
            .filter(|(name, _)| is_kept_xattr(name))
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    };
    Ok(Entry { path, kind, metadata, size, segments: None })
}

/// Attributes that go into the image: those erofs can hold, without those of an overlay, which
/// would make the guest's own overlay follow whoever made the source.
pub(crate) fn is_kept_xattr(name: &[u8]) -> bool {
    supports_xattr(name) && !name.starts_with(b"trusted.overlay.") && !name.contains(&0)
}

fn mode_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}
