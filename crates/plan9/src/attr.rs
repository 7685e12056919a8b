//! Attributes of files: told, and changed.

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chmodat, chownat, ftruncate, statfs, utimensat,
};
use rustix::io::{Errno, Result};

use crate::node::{Node, qid_of};
use crate::wire::{Reader, Writer};

/// All we tell: everything but generation and data version.
const BASIC: u64 = 0x7ff;

mod set {
    pub(super) const MODE: u32 = 1;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_SET: u32 = 1 << 7;
    pub(super) const MTIME_SET: u32 = 1 << 8;
}

/// The number that is nobody's: to the kernel it means that nothing changes.
const NO_ID: u32 = u32::MAX;

/// A user and a group as the client names them.
pub(crate) fn owner(user: u32, group: u32) -> (Option<Uid>, Option<Gid>) {
    let known = |id: &u32| *id != NO_ID;
    (Some(user).filter(known).map(Uid::from_raw), Some(group).filter(known).map(Gid::from_raw))
}

/// The body of an answer to Tgetattr.
pub(crate) fn get(node: &Node, out: &mut Writer) -> Result<()> {
    let stat = node.stat()?;
    let device = (u64::from(stat.stx_rdev_major) << 8) | u64::from(stat.stx_rdev_minor);
    out.u64(BASIC).qid(qid_of(&stat)).u32(stat.stx_mode.into()).u32(stat.stx_uid);
    out.u32(stat.stx_gid).u64(stat.stx_nlink.into()).u64(device).u64(stat.stx_size);
    out.u64(stat.stx_blksize.into()).u64(stat.stx_blocks);
    for time in [stat.stx_atime, stat.stx_mtime, stat.stx_ctime, stat.stx_btime] {
        out.u64(time.tv_sec.cast_unsigned()).u64(time.tv_nsec.into());
    }
    out.u64(0).u64(0);
    Ok(())
}

/// Does what Tsetattr asks.
pub(crate) fn set(node: &Node, body: &mut Reader<'_>) -> Result<()> {
    let (valid, mode, uid, gid, size) =
        (body.u32()?, body.u32()?, body.u32()?, body.u32()?, body.u64()?);
    let mut time = || Ok::<_, Errno>((body.u64()?, body.u64()?));
    let (atime, mtime) = (time()?, time()?);
    let is_link = node.kind()? == FileType::Symlink;
    if valid & (set::UID | set::GID) != 0 {
        let asked = |flag, value| if valid & flag != 0 { value } else { NO_ID };
        let (uid, gid) = owner(asked(set::UID, uid), asked(set::GID, gid));
        chownat(node, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if valid & set::MODE != 0 {
        // A link has no mode of its own.
        if is_link {
            return Err(Errno::OPNOTSUPP);
        }
        chmodat(CWD, node.own_path(), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
    }
    if valid & set::SIZE != 0 {
        ftruncate(node.open(OFlags::WRONLY)?, size)?;
    }
    if valid & (set::ATIME | set::MTIME) != 0 {
        let stamp = |wanted, given, (sec, nsec): (u64, u64)| {
            let nsec = match (valid & wanted != 0, valid & given != 0) {
                (true, true) => i64::try_from(nsec).map_err(|_| Errno::INVAL)?,
                (true, false) => UTIME_NOW,
                (false, _) => UTIME_OMIT,
            };
            Ok::<_, Errno>(Timespec { tv_sec: sec.cast_signed(), tv_nsec: nsec })
        };
        let times = Timestamps {
            last_access: stamp(set::ATIME, set::ATIME_SET, atime)?,
            last_modification: stamp(set::MTIME, set::MTIME_SET, mtime)?,
        };
        if is_link {
            return Err(Errno::OPNOTSUPP);
        }
        utimensat(CWD, node.own_path(), &times, AtFlags::empty())?;
    }
    Ok(())
}

/// The body of an answer to Tstatfs.
pub(crate) fn file_system(node: &Node, out: &mut Writer) -> Result<()> {
    const V9FS_MAGIC: u32 = 0x0102_1997;
    let stat = statfs(node.own_path())?;
    let block = u32::try_from(stat.f_bsize).unwrap_or(4096);
    out.u32(V9FS_MAGIC).u32(block).u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail);
    out.u64(stat.f_files).u64(stat.f_ffree).u64(0).u32(255);
    Ok(())
}
