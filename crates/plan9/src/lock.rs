//! Locks of byte ranges, held by the open file: whoever closes it gives them up.

use std::fs::File;

use nix::errno::Errno as NixErrno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::io::{Errno, Result};

use crate::wire::{Reader, Writer};

const UNLOCK: u8 = 2;
/// Answers to Tlock.
const SUCCESS: u8 = 0;
const BLOCKED: u8 = 1;

fn range(kind: u8, start: u64, length: u64) -> Result<libc::flock> {
    let kind = match kind {
        0 => libc::F_RDLCK,
        1 => libc::F_WRLCK,
        UNLOCK => libc::F_UNLCK,
        _ => return Err(Errno::INVAL),
    };
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: 0,
        l_start: i64::try_from(start).map_err(|_| Errno::INVAL)?,
        l_len: i64::try_from(length).map_err(|_| Errno::INVAL)?,
        l_pid: 0,
    })
}

/// Takes or gives up a lock. It is never waited for: the client asks again.
pub(crate) fn set(file: &File, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
    let (kind, _flags, start, length) = (body.u8()?, body.u32()?, body.u64()?, body.u64()?);
    let lock = range(kind, start, length)?;
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => out.u8(SUCCESS),
        Err(NixErrno::EAGAIN | NixErrno::EACCES) => out.u8(BLOCKED),
        Err(error) => return Err(Errno::from_raw_os_error(error as i32)),
    };
    Ok(())
}

/// Tells who is in the way of a lock.
pub(crate) fn get(file: &File, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
    let (kind, start, length, owner) = (body.u8()?, body.u64()?, body.u64()?, body.u32()?);
    let client = body.text()?;
    let mut lock = range(kind, start, length)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))
        .map_err(|error| Errno::from_raw_os_error(error as i32))?;
    let found = match i32::from(lock.l_type) {
        libc::F_RDLCK => 0,
        libc::F_WRLCK => 1,
        _ => UNLOCK,
    };
    out.u8(found).u64(lock.l_start.cast_unsigned()).u64(lock.l_len.cast_unsigned());
    out.u32(owner).text(&client);
    Ok(())
}
