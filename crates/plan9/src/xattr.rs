//! Extended attributes: those of users, on plain files and directories.
//!
//! The protocol has no request that carries a value. A fid is turned into the attribute, and read or
//! written like a file:
//!
//! ```text
//!   XATTRWALK ──► to read: value or list ──CLUNK──► gone
//!   XATTRCREATE ─► to write ──WRITE, of the size announced──► CLUNK sets it
//! ```
//!
//! Names that do not begin with `user.` are of the host's kernel (labels, capabilities, overlays), and
//! are not a client's to read or write: for it they do not exist.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::{Errno, Result};

use crate::node::Node;

/// The largest value, and the longest list, that Linux has.
const VALUE_MAX: usize = 64 * 1024;
/// What a client's own names begin with.
const OWN: &[u8] = b"user.";

/// What a fid became.
#[derive(Debug)]
pub(crate) struct Attribute {
    value: Vec<u8>,
    setting: Option<Setting>,
}

/// An attribute that is set when its fid goes.
#[derive(Debug)]
struct Setting {
    name: OsString,
    size: usize,
    flags: XattrFlags,
}

impl Attribute {
    /// The value of an attribute, or the list of all if the name is empty.
    pub(crate) fn read(node: &Node, name: &OsStr) -> Result<Self> {
        let has_some = matches!(node.kind()?, FileType::RegularFile | FileType::Directory);
        let value = match (name.is_empty(), has_some) {
            (true, true) => own_names(&grown(|into| listxattr(node.own_path(), into))?),
            (true, false) => Vec::new(),
            (false, true) if is_own(name) => grown(|into| getxattr(node.own_path(), name, into))?,
            (false, _) => return Err(Errno::OPNOTSUPP),
        };
        Ok(Self { value, setting: None })
    }

    /// An attribute that will be set to `size` bytes, which are to come.
    pub(crate) fn create(node: &Node, name: OsString, size: u64, flags: u32) -> Result<Self> {
        let has_some = matches!(node.kind()?, FileType::RegularFile | FileType::Directory);
        if !has_some || !is_own(&name) {
            return Err(Errno::OPNOTSUPP);
        }
        let size = usize::try_from(size).ok().filter(|size| *size <= VALUE_MAX);
        let size = size.ok_or(Errno::TOOBIG)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        Ok(Self { value: Vec::new(), setting: Some(Setting { name, size, flags }) })
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.value.len() as u64
    }

    /// What there is from an offset on.
    pub(crate) fn read_at(&self, offset: u64) -> Result<&[u8]> {
        if self.setting.is_some() {
            return Err(Errno::BADF);
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.value.len());
        Ok(&self.value[from..])
    }

    /// Takes the next bytes of a value, which come in order.
    pub(crate) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let setting = self.setting.as_ref().ok_or(Errno::BADF)?;
        if offset != self.value.len() as u64 {
            return Err(Errno::INVAL);
        }
        if bytes.len() > setting.size - self.value.len() {
            return Err(Errno::NOSPC);
        }
        self.value.extend(bytes);
        Ok(())
    }

    /// Sets it, if that is what it was made for. A client removes an attribute by replacing it with
    /// nothing.
    pub(crate) fn finish(self, node: &Node) -> Result<()> {
        let Some(Setting { name, size, flags }) = self.setting else { return Ok(()) };
        if self.value.len() != size {
            return Err(Errno::INVAL);
        }
        if size == 0 && flags == XattrFlags::REPLACE {
            return removexattr(node.own_path(), &name);
        }
        setxattr(node.own_path(), &name, &self.value, flags)
    }
}

fn is_own(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OWN)
}

/// Of a list of names, each with a zero behind it, those that are the client's.
fn own_names(all: &[u8]) -> Vec<u8> {
    all.split_inclusive(|byte| *byte == 0)
        .filter(|name| name.starts_with(OWN))
        .flatten()
        .copied()
        .collect()
}

/// All there is: in little room first, as most are short.
fn grown(mut ask: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    for room in [256, VALUE_MAX] {
        let mut all = vec![0; room];
        match ask(&mut all) {
            Ok(size) => {
                all.truncate(size);
                return Ok(all);
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::TOOBIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_users_are_listed() {
        let all = b"user.a\0security.selinux\0user.b\0trusted.overlay.opaque\0";
        assert_eq!(own_names(all), b"user.a\0user.b\0");
        assert_eq!(own_names(b""), b"");
    }
}
