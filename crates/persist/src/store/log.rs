//! The log as a file: where the next frame goes, and how much room is left.

use super::disk::{Disk, open_file, read_written};
use super::replay::{Generation, Replay};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// The name of the log in a sandbox's directory.
pub(super) const NAME: &str = "state.log";
/// A log that is being written to replace it.
pub(super) const NEW: &str = ".state.log.new";
/// Room that is kept for the commits of a full disk.
const RESERVE: u64 = 32 << 10;
/// Deltas may have this share of the snapshot's size before a new one is made, as numerator and
/// denominator; a save of nearly everything therefore makes a new log.
const SHARE: (u64, u64) = (1, 2);

/// A log that is open for appending.
#[derive(Debug)]
pub(super) struct Log {
    file: OwnedFd,
    identity: (u64, u64),
    pub(super) generation: Generation,
    pub(super) time: i64,
    end: u64,
    capacity: u64,
    snapshot_end: u64,
    /// An append failed and may still be there.
    suspect: bool,
}

/// Which file something is.
fn identity(stat: &rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Log {
    /// Opens the log of a directory and reads it. Nothing when there is none.
    pub(super) fn open(dir: impl AsFd) -> Result<Option<(OwnedFd, Vec<u8>)>, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, NAME, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let bytes = read_written(&file)?;
        Ok(Some((file, bytes)))
    }

    /// Reads the log of a directory without any right to write to it. Nothing when there is none.
    pub(super) fn read(dir: impl AsFd) -> Result<Option<Vec<u8>>, Errno> {
        match open_file(dir, NAME) {
            Ok(file) => read_written(file).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// An open log of which this is known.
    pub(super) fn known(file: OwnedFd, replay: &Replay<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&file)?;
        let (_, snapshot_end) = replay.snapshot;
        Ok(Self {
            identity: identity(&stat),
            generation: replay.generation,
            time: replay.time,
            end: replay.end as u64,
            capacity: u64::try_from(stat.st_size).unwrap_or(0),
            snapshot_end: snapshot_end as u64,
            // What a torn commit left would be read as the head of the next one.
            suspect: replay.tail != super::Tail::Clean,
            file,
        })
    }

    /// Whether this is still the directory's log, and nobody else has appended to it.
    pub(super) fn is_current(&self, dir: impl AsFd) -> Result<bool, Errno> {
        match rustix::fs::statat(dir, NAME, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if identity(&stat) == self.identity => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        let mut head = [0; 4];
        let read = rustix::io::pread(&self.file, &mut head, self.end)?;
        Ok(head[..read].iter().all(|byte| *byte == 0))
    }

    /// Whether a frame should rather become part of a new log.
    pub(super) fn is_full_for(&self, frame: usize) -> bool {
        let after = self.end + frame as u64;
        let deltas = after - self.snapshot_end;
        self.suspect
            || after + RESERVE > self.capacity
            || deltas > (self.snapshot_end * SHARE.0 / SHARE.1).max(RESERVE * 2)
    }

    /// Whether a frame can be appended, if need be into the reserve.
    pub(super) fn has_room_for(&self, frame: usize) -> bool {
        self.end + frame as u64 <= self.capacity
    }

    /// Appends a frame and makes it last. An error means that it may or may not be there; the next
    /// commit then goes to a new log.
    pub(super) fn append(
        &mut self,
        disk: &Disk,
        frame: &[u8],
        generation: Generation,
        time: i64,
    ) -> Result<(), Errno> {
        let done = self
            .clear_tail(disk)
            .and_then(|()| disk.write(&self.file, frame, self.end))
            .and_then(|()| disk.sync(&self.file));
        if let Err(errno) = done {
            self.suspect = true;
            // So that a reader does not see what was reported as failed. If this fails too, it sees
            // the new state, whole.
            let zeros = vec![0; frame.len()];
            let _ = rustix::io::pwrite(&self.file, &zeros, self.end);
            return Err(errno);
        }
        self.end += frame.len() as u64;
        self.generation = generation;
        self.time = time;
        self.suspect = false;
        Ok(())
    }

    /// Overwrites what a commit has left that was not made. It lies in reserved space, so this can be
    /// done on a full disk too.
    fn clear_tail(&self, disk: &Disk) -> Result<(), Errno> {
        if !self.suspect {
            return Ok(());
        }
        let len = usize::try_from(self.capacity - self.end).map_err(|_| Errno::FBIG)?;
        disk.write(&self.file, &vec![0; len], self.end)
    }

    /// Writes a new log with one snapshot and puts it in the place of the old.
    pub(super) fn create(
        disk: &Disk,
        dir: impl AsFd,
        snapshot: &[u8],
        generation: Generation,
        time: i64,
    ) -> Result<Self, Errno> {
        disk.unlink(&dir, NEW)?;
        let file = disk.create(&dir, NEW)?;
        let end = snapshot.len() as u64;
        let deltas = (end * SHARE.0 / SHARE.1).max(RESERVE * 2);
        let capacity = (end + deltas + 2 * RESERVE).next_multiple_of(4096);
        let made = Self::fill(disk, &dir, &file, snapshot, capacity);
        if let Err(errno) = made {
            let _ = rustix::fs::unlinkat(&dir, NEW, AtFlags::empty());
            return Err(errno);
        }
        let stat = rustix::fs::fstat(&file)?;
        let identity = identity(&stat);
        Ok(Self {
            file,
            identity,
            generation,
            time,
            end,
            capacity,
            snapshot_end: end,
            suspect: false,
        })
    }

    fn fill(
        disk: &Disk,
        dir: impl AsFd,
        file: &OwnedFd,
        snapshot: &[u8],
        capacity: u64,
    ) -> Result<(), Errno> {
        disk.allocate(file, capacity)?;
        disk.write(file, snapshot, 0)?;
        disk.sync(file)?;
        disk.rename(&dir, NEW, NAME)
    }
}
