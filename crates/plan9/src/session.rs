//! One client's session: its fids, and what each request does.

mod attribute;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, chownat, linkat, mkdirat, mknodat, openat,
    readlinkat, renameat, seek, symlinkat, unlinkat,
};
use rustix::io::{Errno, Result};

use crate::export::Export;
use crate::node::Node;
use crate::wire::{QID, Reader, Writer, frame, kind};
use crate::xattr::Attribute;
use crate::{attr, lock};

/// The only dialect.
const DIALECT: &str = "9P2000.L";
/// What a message holds besides the data of a read.
const READ_OVERHEAD: u32 = 11;
/// Fids one client may hold; each is a descriptor.
const MAX_FIDS: usize = 1 << 16;
/// No uid is told.
const NOBODY: u32 = u32::MAX;

/// One client's session, for a server with a transport of its own.
#[derive(Debug)]
pub struct Session {
    export: Arc<Export>,
    fids: HashMap<u32, Fid>,
    /// The longest message, in bytes.
    pub(crate) message: u32,
}

/// What a fid stands for.
#[derive(Debug)]
struct Fid {
    node: Arc<Node>,
    /// Whose files are made through it.
    user: u32,
    open: Option<File>,
    /// It no longer stands for the file, but for this of it.
    attribute: Option<Attribute>,
}

impl Session {
    /// A session with a client nothing is agreed with yet; `message` is the longest message, in
    /// bytes, that it will agree to.
    pub fn new(export: Arc<Export>, message: u32) -> Self {
        Self { export, fids: HashMap::new(), message }
    }

    /// The whole answer to a request.
    pub fn respond(&mut self, request: u8, tag: u16, body: &[u8]) -> Vec<u8> {
        match self.answer(request, body) {
            Ok(answer) => frame(request.wrapping_add(1), tag, &answer),
            Err(error) => {
                let number = error.raw_os_error().cast_unsigned();
                frame(kind::ERROR, tag, &number.to_le_bytes())
            }
        }
    }

    /// Answers a request: the body of its answer, or an error number.
    fn answer(&mut self, request: u8, body: &[u8]) -> Result<Vec<u8>> {
        let (mut body, mut out) = (Reader::new(body), Writer::default());
        let (body, out) = (&mut body, &mut out);
        match request {
            kind::VERSION => self.version(body, out)?,
            kind::ATTACH => self.attach(body, out)?,
            // Requests are answered in order, so there is never one to flush.
            kind::FLUSH => {}
            kind::WALK => self.walk(body, out)?,
            kind::LOPEN => self.open(body, out)?,
            kind::LCREATE => self.create(body, out)?,
            kind::READ => self.read(body, out)?,
            kind::WRITE => self.write(body, out)?,
            kind::CLUNK => {
                let fid = self.fids.remove(&body.u32()?).ok_or(Errno::BADF)?;
                fid.attribute.map_or(Ok(()), |attribute| attribute.finish(&fid.node))?;
            }
            kind::XATTRWALK => self.read_attribute(body, out)?,
            kind::XATTRCREATE => self.create_attribute(body)?,
            kind::REMOVE => {
                self.fids.remove(&body.u32()?).ok_or(Errno::BADF)?;
                return Err(Errno::OPNOTSUPP);
            }
            kind::GETATTR => attr::get(&self.fid(body)?.node, out)?,
            kind::SETATTR => {
                self.may_write()?;
                attr::set(&self.fid(body)?.node, body)?;
            }
            kind::STATFS => attr::file_system(&self.fid(body)?.node, out)?,
            kind::READDIR => self.read_directory(body, out)?,
            kind::READLINK => {
                let target = readlinkat(&self.fid(body)?.node, "", Vec::new())?;
                out.text(OsStr::new(&to_os(target.into_bytes())));
            }
            kind::FSYNC => {
                let file = self.opened(body)?;
                file.sync_all().map_err(|error| errno(&error))?;
            }
            kind::LOCK => lock::set(self.opened(body)?, body, out)?,
            kind::GETLOCK => lock::get(self.opened(body)?, body, out)?,
            kind::MKDIR => self.make_directory(body, out)?,
            kind::SYMLINK => self.make_link(body, out)?,
            kind::MKNOD => self.make_node(body, out)?,
            kind::LINK => {
                let (into, node) = (self.directory(body)?, self.fid(body)?.node.clone());
                let name = self.new_name(&into, body)?;
                linkat(&*node, "", &*into, &name, AtFlags::EMPTY_PATH)?;
            }
            kind::RENAMEAT => {
                let (from, old) = self.old_name(body)?;
                let into = self.directory(body)?;
                let new = self.new_name(&into, body)?;
                renameat(&*from, &old, &*into, &new)?;
            }
            kind::UNLINKAT => {
                let (from, name) = self.old_name(body)?;
                let is_directory = body.u32()? & 0x200 != 0;
                let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                unlinkat(&*from, &name, flags)?;
            }
            _ => return Err(Errno::OPNOTSUPP),
        }
        Ok(std::mem::take(&mut out.0))
    }

    fn version(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        const LEAST: u32 = 4096;
        let (wanted, dialect) = (body.u32()?, body.text()?);
        // A new agreement ends all that was before.
        self.fids.clear();
        self.message = self.message.min(wanted);
        if self.message < LEAST {
            return Err(Errno::MSGSIZE);
        }
        let spoken = if dialect == DIALECT { DIALECT } else { "unknown" };
        out.u32(self.message).text(OsStr::new(spoken));
        Ok(())
    }

    fn attach(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let (fid, _auth, _name, _tree) = (body.u32()?, body.u32()?, body.text()?, body.text()?);
        let user = body.u32().unwrap_or(NOBODY);
        let node = Node::root(&self.export.root)?;
        out.qid(node.qid()?);
        self.insert(fid, Fid { node, user, open: None, attribute: None })
    }

    fn walk(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        const MOST: u16 = 16;
        let from = self.fid(body)?;
        let (mut node, user) = (from.node.clone(), from.user);
        let (new, count) = (body.u32()?, body.u16()?);
        if count > MOST {
            return Err(Errno::INVAL);
        }
        let mut qids = Writer::default();
        let mut walked = 0_u16;
        for _ in 0..count {
            match self.step(&node, &body.text()?) {
                Ok(next) => {
                    qids.qid(next.qid()?);
                    node = next;
                    walked += 1;
                }
                // The first step must be good; later ones say by their number how far it went.
                Err(error) if walked == 0 => return Err(error),
                Err(_) => break,
            }
        }
        out.u16(walked);
        out.0.extend(qids.0);
        if walked == count {
            self.insert(new, Fid { node, user, open: None, attribute: None })?;
        }
        Ok(())
    }

    fn step(&self, from: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>> {
        if name == ".." {
            return Ok(from.back());
        }
        let mut framed = Writer::default();
        framed.text(name);
        let name = Reader::new(&framed.0).name()?;
        self.may_name(from, &name)?;
        from.step(&name)
    }

    fn open(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let (fid, flags) = (body.u32()?, flags_of(body.u32()?));
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC | OFlags::APPEND) {
            self.may_write()?;
        }
        let fid = self.fids.get_mut(&fid).ok_or(Errno::BADF)?;
        let file = fid.node.open(flags)?;
        out.qid(fid.node.qid()?).u32(0);
        fid.open = Some(file);
        Ok(())
    }

    fn create(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let number = body.u32()?;
        let fid = self.fids.get(&number).ok_or(Errno::BADF)?;
        let (directory, user) = (fid.node.clone(), fid.user);
        let name = self.new_name(&directory, body)?;
        let (flags, mode, group) = (flags_of(body.u32()?), body.u32()?, body.u32()?);
        // Never an existing file: it could be a link or a device.
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&*directory, &name, flags, Mode::from_raw_mode(mode & 0o7777))?;
        let node = directory.step(&name)?;
        own(&node, user, group)?;
        out.qid(node.qid()?).u32(0);
        self.fids.insert(number, Fid { node, user, open: Some(File::from(file)), attribute: None });
        Ok(())
    }

    fn read(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let (offset, count) = (body.u64()?, body.u32()?);
        let count = count.min(self.message.saturating_sub(READ_OVERHEAD));
        let count = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        if let Some(attribute) = &fid.attribute {
            let data = attribute.read_at(offset)?;
            let data = &data[..data.len().min(count)];
            out.u32(u32::try_from(data.len()).map_err(|_| Errno::INVAL)?);
            out.0.extend(data);
            return Ok(());
        }
        let file = fid.open.as_ref().ok_or(Errno::BADF)?;
        let mut data = vec![0; count];
        let read = file.read_at(&mut data, offset).map_err(|error| errno(&error))?;
        out.u32(u32::try_from(read).map_err(|_| Errno::INVAL)?);
        out.0.extend(&data[..read]);
        Ok(())
    }

    fn write(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fids.get_mut(&body.u32()?).ok_or(Errno::BADF)?;
        let (offset, count) = (body.u64()?, body.u32()?);
        let data = body.bytes(usize::try_from(count).map_err(|_| Errno::INVAL)?)?;
        if let Some(attribute) = &mut fid.attribute {
            attribute.write_at(offset, data)?;
            out.u32(count);
            return Ok(());
        }
        let file = fid.open.as_ref().ok_or(Errno::BADF)?;
        let written = file.write_at(data, offset).map_err(|error| errno(&error))?;
        out.u32(u32::try_from(written).map_err(|_| Errno::INVAL)?);
        Ok(())
    }

    fn read_directory(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let directory = fid.open.as_ref().ok_or(Errno::BADF)?;
        let (offset, count) = (body.u64()?, body.u32()?);
        let room = usize::try_from(count.min(self.message.saturating_sub(READ_OVERHEAD)))
            .map_err(|_| Errno::INVAL)?;
        seek(directory, SeekFrom::Start(offset))?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        let mut listed = Writer::default();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = to_os(entry.file_name().to_bytes().to_vec());
            if fid.node.is_root() && name != "." && name != ".." && !self.export.allows(&name) {
                continue;
            }
            if listed.0.len() + QID + 11 + name.len() > room {
                break;
            }
            // The kernel's kinds of entries are those of the protocol.
            let (number, kind) = (entry.ino(), entry.file_type());
            let is_directory = kind == FileType::Directory;
            let qid = crate::wire::Qid {
                kind: if is_directory { 0x80 } else { 0 },
                version: 0,
                path: number,
            };
            listed.qid(qid).u64(entry.next_entry_cookie()).u8(entry_kind(kind)).text(&name);
        }
        out.u32(u32::try_from(listed.0.len()).map_err(|_| Errno::INVAL)?);
        out.0.extend(listed.0);
        Ok(())
    }

    fn make_directory(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let (into, user) = (fid.node.clone(), fid.user);
        let name = self.new_name(&into, body)?;
        let (mode, group) = (body.u32()?, body.u32()?);
        mkdirat(&*into, &name, Mode::from_raw_mode(mode & 0o7777))?;
        self.made(&into, &name, user, group, out)
    }

    fn make_link(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let (into, user) = (fid.node.clone(), fid.user);
        let name = self.new_name(&into, body)?;
        let (target, group) = (body.text()?, body.u32()?);
        symlinkat(&target, &*into, &name)?;
        self.made(&into, &name, user, group, out)
    }

    /// Sockets, FIFOs and plain files; a device node would be a key to the host's devices.
    fn make_node(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let (into, user) = (fid.node.clone(), fid.user);
        let name = self.new_name(&into, body)?;
        let (mode, _major, _minor, group) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        mknodat(&*into, &name, kind, Mode::from_raw_mode(mode & 0o7777), 0)?;
        self.made(&into, &name, user, group, out)
    }

    fn made(
        &self,
        into: &Arc<Node>,
        name: &OsStr,
        user: u32,
        group: u32,
        out: &mut Writer,
    ) -> Result<()> {
        let node = into.step(name)?;
        own(&node, user, group)?;
        out.qid(node.qid()?);
        Ok(())
    }

    fn fid(&self, body: &mut Reader<'_>) -> Result<&Fid> {
        self.fids.get(&body.u32()?).ok_or(Errno::BADF)
    }

    fn opened(&self, body: &mut Reader<'_>) -> Result<&File> {
        self.fid(body)?.open.as_ref().ok_or(Errno::BADF)
    }

    fn directory(&self, body: &mut Reader<'_>) -> Result<Arc<Node>> {
        Ok(self.fid(body)?.node.clone())
    }

    /// A directory and a name in it that is about to be made.
    fn new_name(&self, into: &Node, body: &mut Reader<'_>) -> Result<OsString> {
        self.may_write()?;
        let name = body.name()?;
        self.may_name(into, &name)?;
        Ok(name)
    }

    /// A directory and a name in it that is about to go.
    fn old_name(&self, body: &mut Reader<'_>) -> Result<(Arc<Node>, OsString)> {
        let from = self.directory(body)?;
        let name = self.new_name(&from, body)?;
        Ok((from, name))
    }

    fn may_write(&self) -> Result<()> {
        if self.export.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// What is not shared does not exist.
    fn may_name(&self, directory: &Node, name: &OsStr) -> Result<()> {
        let is_hidden = directory.is_root() && !self.export.allows(name);
        if is_hidden { Err(Errno::NOENT) } else { Ok(()) }
    }

    fn insert(&mut self, number: u32, fid: Fid) -> Result<()> {
        if self.fids.len() >= MAX_FIDS {
            return Err(Errno::NFILE);
        }
        self.fids.insert(number, fid);
        Ok(())
    }
}

/// Gives a new file to the client's user; without the right to, it stays ours.
fn own(node: &Node, user: u32, group: u32) -> Result<()> {
    let (user, group) = attr::owner(user, group);
    if user.is_none() {
        return Ok(());
    }
    match chownat(node, "", user, group, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The flags of an open that mean the same here. What could lead elsewhere, or do more than open, is
/// left out.
fn flags_of(asked: u32) -> OFlags {
    let taken = OFlags::RDONLY
        | OFlags::WRONLY
        | OFlags::RDWR
        | OFlags::TRUNC
        | OFlags::SYNC
        | OFlags::DSYNC
        | OFlags::NOATIME;
    OFlags::from_bits_truncate(asked) & taken
}

fn entry_kind(kind: FileType) -> u8 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        _ => 0,
    }
}

fn to_os(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
