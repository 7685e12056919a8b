//! The host's end: a file.
//!
//! It is read and written by system calls, not mapped: what the guest writes meanwhile can then do no more than
//! make bytes wrong that are the guest's own.

use super::{Place, SLOT, TO_GUEST, TO_HOST, offset};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The area's file, and for one session the slots that the guest has granted.
#[derive(Debug)]
pub(crate) struct HostArea {
    file: OwnedFd,
    /// A bit for each slot towards the guest.
    granted: AtomicU32,
}

impl HostArea {
    /// Opens the file, for one session.
    ///
    /// # Errors
    /// Those of the open.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(HostArea { file, granted: AtomicU32::new(0) })
    }

    /// Copies out what the guest has placed.
    ///
    /// # Errors
    /// `InvalidInput` when there is no such place; those of the read.
    pub(crate) fn read(&self, place: Place, into: &mut Vec<u8>) -> io::Result<()> {
        let number = u8::try_from(place.slot).ok().filter(|number| *number < TO_HOST);
        let (Some(number), Some(range)) = (number, place.range()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        into.resize(range.len(), 0);
        let from = offset(number) + range.start;
        let mut done = 0;
        while done < range.len() {
            match rustix::io::pread(&self.file, &mut into[done..], (from + done) as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Takes a slot that the guest has granted. False when it is none, or was granted before.
    pub(crate) fn grant(&self, slot: u32) -> bool {
        let bit = slot.checked_sub(u32::from(TO_HOST)).filter(|bit| *bit < u32::from(TO_GUEST));
        let Some(bit) = bit else { return false };
        self.granted.fetch_or(1 << bit, Ordering::Relaxed) & (1 << bit) == 0
    }

    /// A granted slot to fill.
    pub(crate) fn take(self: &Arc<Self>) -> Option<HostSlot> {
        let granted = self.granted.load(Ordering::Relaxed);
        let bit = u8::try_from(granted.trailing_zeros()).ok().filter(|bit| *bit < TO_GUEST)?;
        self.granted.fetch_and(!(1 << bit), Ordering::Relaxed);
        Some(HostSlot { number: TO_HOST + bit, area: Arc::clone(self), is_spent: false })
    }
}

/// A slot for the host to fill. Dropped before it was spent, it can be taken again.
#[derive(Debug)]
pub(crate) struct HostSlot {
    number: u8,
    area: Arc<HostArea>,
    is_spent: bool,
}

impl HostSlot {
    /// Its number.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Writes at `at`. Beyond the end of the slot is a mistake of the caller's, and an error.
    ///
    /// # Errors
    /// Those of the write.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        if at + bytes.len() > SLOT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut done = 0;
        while done < bytes.len() {
            let to = (offset(self.number) + at + done) as u64;
            match rustix::io::pwrite(&self.area.file, &bytes[done..], to)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// It is the guest's again.
    pub(crate) fn spend(mut self) {
        self.is_spent = true;
    }
}

impl Drop for HostSlot {
    fn drop(&mut self) {
        if !self.is_spent {
            self.area.granted.fetch_or(1 << (self.number - TO_HOST), Ordering::Relaxed);
        }
    }
}
