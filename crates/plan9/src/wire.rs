//! Messages in bytes: little endian, each behind its length, type and tag.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::io::Errno;

/// Bytes before a message's body: length (4), type (1), tag (2).
pub(crate) const HEADER: usize = 7;

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// Types of requests; each answer's is one more.
pub(crate) mod kind {
    pub(crate) const ERROR: u8 = 7;
    pub(crate) const STATFS: u8 = 8;
    pub(crate) const LOPEN: u8 = 12;
    pub(crate) const LCREATE: u8 = 14;
    pub(crate) const SYMLINK: u8 = 16;
    pub(crate) const MKNOD: u8 = 18;
    pub(crate) const READLINK: u8 = 22;
    pub(crate) const GETATTR: u8 = 24;
    pub(crate) const SETATTR: u8 = 26;
    pub(crate) const XATTRWALK: u8 = 30;
    pub(crate) const XATTRCREATE: u8 = 32;
    pub(crate) const READDIR: u8 = 40;
    pub(crate) const FSYNC: u8 = 50;
    pub(crate) const LOCK: u8 = 52;
    pub(crate) const GETLOCK: u8 = 54;
    pub(crate) const LINK: u8 = 70;
    pub(crate) const MKDIR: u8 = 72;
    pub(crate) const RENAMEAT: u8 = 74;
    pub(crate) const UNLINKAT: u8 = 76;
    pub(crate) const VERSION: u8 = 100;
    pub(crate) const ATTACH: u8 = 104;
    pub(crate) const FLUSH: u8 = 108;
    pub(crate) const WALK: u8 = 110;
    pub(crate) const READ: u8 = 116;
    pub(crate) const WRITE: u8 = 118;
    pub(crate) const CLUNK: u8 = 120;
    pub(crate) const REMOVE: u8 = 122;
}

/// Reads a message's body; what is missing or malformed is an invalid argument.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::INVAL)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Errno> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn text(&mut self) -> Result<OsString, Errno> {
        let count = self.u16()?;
        self.bytes(count.into()).map(|bytes| OsString::from_vec(bytes.to_vec()))
    }

    /// A name that is one step of a path and nothing else.
    pub(crate) fn name(&mut self) -> Result<OsString, Errno> {
        let name = self.text()?;
        let bytes = name.as_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let is_step = !bytes.is_empty() && bytes != b"." && bytes != b"..";
        if !is_step || bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(Errno::INVAL);
        }
        Ok(name)
    }
}

/// Writes a message's body.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn text(&mut self, text: &OsStr) -> &mut Self {
        // No text of ours is longer: names have 255 bytes, links 4096.
        let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        self.0.extend(bytes);
        self
    }

    pub(crate) fn qid(&mut self, qid: Qid) -> &mut Self {
        self.u8(qid.kind).u32(qid.version).u64(qid.path)
    }
}

/// What the client knows a file by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Qid {
    pub(crate) kind: u8,
    pub(crate) version: u32,
    pub(crate) path: u64,
}

/// Bytes of a qid.
pub(crate) const QID: usize = 13;

/// An answer as it is sent.
pub(crate) fn frame(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend(length.to_le_bytes());
    frame.push(kind);
    frame.extend(tag.to_le_bytes());
    frame.extend(body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(bytes: &[u8]) -> Result<OsString, Errno> {
        let mut body = u16::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
        body.extend(bytes);
        Reader::new(&body).name()
    }

    #[test]
    fn a_name_is_one_step_of_a_path() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
            assert_eq!(named(bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(named(&[b'x'; 256]), Err(Errno::NAMETOOLONG));
        assert_eq!(named(b"..."), Ok("...".into()));
    }

    proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&body);
            while reader.name().is_ok() && reader.u32().is_ok() && reader.u64().is_ok() {}
        }
    }
}
