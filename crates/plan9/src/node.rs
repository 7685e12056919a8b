//! A file as the client reached it: a descriptor that can be looked at and stepped from, and nothing
//! else.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, open, openat2, statx,
};
use rustix::io::{Errno, Result};

use crate::wire::Qid;

/// A file, by a descriptor that gives no access to its contents.
#[derive(Debug)]
pub(crate) struct Node {
    fd: OwnedFd,
    /// Where the step to it came from; none for the directory itself.
    parent: Option<Arc<Node>>,
}

/// One step, beneath where we are, through no link.
const STEP: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Node {
    /// The shared directory.
    pub(crate) fn root(fd: &OwnedFd) -> Result<Arc<Self>> {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        Ok(Arc::new(Self { fd, parent: None }))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// One step to a name.
    pub(crate) fn step(self: &Arc<Self>, name: &OsStr) -> Result<Arc<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A rename under way makes the kernel unsure: it asks to be asked again.
        let fd = loop {
            match openat2(&self.fd, name, flags, Mode::empty(), STEP) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => break other?,
            }
        };
        Ok(Arc::new(Self { fd, parent: Some(self.clone()) }))
    }

    /// One step back; from the directory itself it leads nowhere.
    pub(crate) fn back(self: &Arc<Self>) -> Arc<Self> {
        self.parent.clone().unwrap_or_else(|| self.clone())
    }

    /// Opens the file's contents. Only plain files and directories have any that are the client's
    /// business: opening a device or a FIFO would act on the host.
    pub(crate) fn open(&self, flags: OFlags) -> Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        match self.kind()? {
            FileType::RegularFile => open(self.own_path(), flags, Mode::empty()).map(File::from),
            FileType::Directory if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                openat2(&self.fd, ".", flags, Mode::empty(), STEP).map(File::from)
            }
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::ACCESS),
        }
    }

    /// The kernel's own name for this very file, whatever it is called by now. Never used on a link.
    pub(crate) fn own_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(crate) fn stat(&self) -> Result<Statx> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        statx(&self.fd, "", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
    }

    pub(crate) fn kind(&self) -> Result<FileType> {
        Ok(FileType::from_raw_mode(self.stat()?.stx_mode.into()))
    }

    pub(crate) fn qid(&self) -> Result<Qid> {
        Ok(qid_of(&self.stat()?))
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The client tells files apart by number; on several file systems below one directory the numbers
/// can be alike, so the device has its part in them.
pub(crate) fn qid_of(stat: &Statx) -> Qid {
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => 0x80,
        FileType::Symlink => 0x02,
        _ => 0,
    };
    let device = (u64::from(stat.stx_dev_major) << 20) ^ u64::from(stat.stx_dev_minor);
    let path = stat.stx_ino ^ device.rotate_left(40);
    // What the file's contents were, in a number: a change of it makes the client forget its pages.
    let changed = stat.stx_mtime.tv_sec.cast_unsigned() ^ u64::from(stat.stx_mtime.tv_nsec);
    let version = u32::try_from((changed ^ (changed >> 32)) & 0xffff_ffff).unwrap_or_default();
    Qid { kind, version, path }
}
