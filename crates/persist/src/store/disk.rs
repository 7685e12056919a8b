//! Every call that changes something on disk, counted.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Timespec, Timestamps,
};
use rustix::io::Errno;
use std::sync::{Mutex, PoisonError};

/// Something done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A directory is made.
    MakeDir,
    /// A file is made.
    Create,
    /// Space is reserved for a file.
    Allocate,
    /// Bytes are written.
    Write,
    /// A file's content is made to survive a power cut.
    Sync,
    /// A directory's entries are.
    SyncDir,
    /// All of a file system is.
    SyncAll,
    /// A file gets its time of change.
    Stamp,
    /// A file takes the place of another.
    Rename,
    /// A file is removed.
    Unlink,
    /// An empty directory is removed.
    RemoveDir,
}

/// What happens at an effect of a [`Script`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It fails, having done nothing.
    Fail(Errno),
    /// Half of the bytes are written, then it fails; other effects fail at once.
    Half(Errno),
    /// It and every later one fails.
    FailOn(Errno),
    /// The process dies before it.
    Die,
}

/// A disk that fails on purpose, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// Which effect, from 0.
    pub at: usize,
    /// What happens there.
    pub then: Then,
}

/// The disk a store writes to.
#[derive(Debug, Default)]
pub struct Disk {
    script: Option<Script>,
    /// Nothing is made to survive a power cut.
    careless: bool,
    done: Mutex<Vec<Effect>>,
}

impl Disk {
    /// A disk that does as the script says.
    pub fn scripted(script: Script) -> Self {
        Self { script: Some(script), ..Self::default() }
    }

    /// A disk that makes nothing survive a power cut: for places that are gone then anyway, and to
    /// measure what it costs.
    pub fn careless() -> Self {
        Self { careless: true, ..Self::default() }
    }

    /// A disk that remembers what was done to it; for counting effects in a test.
    pub fn watched() -> Self {
        Self::scripted(Script { at: usize::MAX, then: Then::Die })
    }

    /// What was done, in order. Only a scripted or watched disk remembers.
    pub fn effects(&self) -> Vec<Effect> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether an effect may happen. `Some` limits how much of a write.
    fn may(&self, effect: Effect) -> Result<Option<Errno>, Errno> {
        let Some(script) = self.script else { return Ok(None) };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let at = done.len();
        done.push(effect);
        match script.then {
            Then::FailOn(errno) if at >= script.at => Err(errno),
            _ if at != script.at => Ok(None),
            Then::Half(errno) if effect == Effect::Write => Ok(Some(errno)),
            Then::Fail(errno) | Then::Half(errno) | Then::FailOn(errno) => Err(errno),
            Then::Die => std::process::abort(),
        }
    }

    pub(crate) fn make_dir(&self, dir: impl AsFd, name: &str) -> Result<(), Errno> {
        self.may(Effect::MakeDir)?;
        rustix::fs::mkdirat(dir, name, Mode::RWXU)
    }

    /// Makes a file that must not be there yet, 0600; no link on its way is followed.
    pub(crate) fn create(&self, dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
        self.may(Effect::Create)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(dir, name, flags, Mode::RUSR | Mode::WUSR, resolve)
    }

    /// Reserves the first `len` bytes of a file and makes them zeros where nothing was.
    pub(crate) fn allocate(&self, file: impl AsFd, len: u64) -> Result<(), Errno> {
        self.may(Effect::Allocate)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
            // A file system without reservations: the file has at least its size.
            Err(Errno::OPNOTSUPP) => rustix::fs::ftruncate(file, len),
            done => done,
        }
    }

    /// Writes all of `bytes` at an offset.
    pub(crate) fn write(&self, file: impl AsFd, bytes: &[u8], at: u64) -> Result<(), Errno> {
        match self.may(Effect::Write)? {
            None => write_all(file.as_fd(), bytes, at),
            Some(errno) => {
                write_all(file.as_fd(), &bytes[..bytes.len() / 2], at)?;
                Err(errno)
            }
        }
    }

    pub(crate) fn sync(&self, file: impl AsFd) -> Result<(), Errno> {
        self.may(Effect::Sync)?;
        if self.careless {
            return Ok(());
        }
        rustix::fs::fdatasync(file)
    }

    pub(crate) fn sync_dir(&self, dir: impl AsFd) -> Result<(), Errno> {
        self.may(Effect::SyncDir)?;
        if self.careless {
            return Ok(());
        }
        rustix::fs::fsync(dir)
    }

    pub(crate) fn sync_all(&self, dir: impl AsFd) -> Result<(), Errno> {
        self.may(Effect::SyncAll)?;
        if self.careless {
            return Ok(());
        }
        rustix::fs::syncfs(dir)
    }

    /// Sets a file's time of change, in nanoseconds since 1970.
    pub(crate) fn stamp(&self, file: impl AsFd, time: i64) -> Result<(), Errno> {
        self.may(Effect::Stamp)?;
        let time = Timespec {
            tv_sec: time.div_euclid(1_000_000_000),
            tv_nsec: time.rem_euclid(1_000_000_000),
        };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
    }

    pub(crate) fn rename(&self, dir: impl AsFd, from: &str, to: &str) -> Result<(), Errno> {
        self.may(Effect::Rename)?;
        rustix::fs::renameat(&dir, from, &dir, to)
    }

    /// Moves an entry from one directory to another.
    pub(crate) fn carry(
        &self,
        (from, old): (impl AsFd, &str),
        (to, new): (impl AsFd, &str),
    ) -> Result<(), Errno> {
        self.may(Effect::Rename)?;
        rustix::fs::renameat(from, old, to, new)
    }

    /// Removes a file; one that is not there is fine.
    pub(crate) fn unlink(&self, dir: impl AsFd, name: &str) -> Result<(), Errno> {
        self.may(Effect::Unlink)?;
        absent_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::empty()))
    }

    /// Removes an empty directory; one that is not there is fine.
    pub(crate) fn remove_dir(&self, dir: impl AsFd, name: &str) -> Result<(), Errno> {
        self.may(Effect::RemoveDir)?;
        absent_is_fine(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }

    /// Removes a directory and all that is in it, following no link; one that is not there is fine.
    pub(crate) fn remove_tree(&self, dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(inner) => inner,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return self.unlink(dir, name),
            Err(errno) => return Err(errno),
        };
        for entry in entries(&inner)? {
            self.remove_tree(inner.as_fd(), &entry)?;
        }
        self.remove_dir(dir, name)
    }
}

fn absent_is_fine(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                bytes = &bytes[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// All of a file.
pub(crate) fn read_all(file: impl AsFd) -> Result<Vec<u8>, Errno> {
    let size = rustix::fs::fstat(&file)?.st_size;
    // One more, so that the end is found without growing.
    let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(|_| Errno::FBIG)? + 1);
    read_until(&file, &mut bytes, None)?;
    Ok(bytes)
}

/// All of a file but the zeros at its end that were only reserved.
pub(super) fn read_written(file: impl AsFd) -> Result<Vec<u8>, Errno> {
    let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
    let mut bytes = Vec::new();
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but reserved space follows.
            Err(Errno::NXIO) => return Ok(bytes),
            Err(_) => return read_all(file),
        };
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap_or(size);
        let end = usize::try_from(hole).map_err(|_| Errno::FBIG)?;
        bytes.reserve(end.saturating_sub(bytes.len()) + 1);
        bytes.resize(usize::try_from(data).map_err(|_| Errno::FBIG)?, 0);
        read_until(&file, &mut bytes, Some(end))?;
        if bytes.len() < end {
            return Ok(bytes);
        }
        at = hole;
    }
}

/// Reads on where `bytes` end, to `end` or the end of the file.
fn read_until(file: impl AsFd, bytes: &mut Vec<u8>, end: Option<usize>) -> Result<(), Errno> {
    while end.is_none_or(|end| bytes.len() < end) {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(4096);
        }
        let at = bytes.len() as u64;
        match rustix::io::pread(&file, rustix::buffer::spare_capacity(bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if let Some(end) = end {
        bytes.truncate(end);
    }
    Ok(())
}

/// A file in a directory, for reading; links are not followed.
pub(crate) fn open_file(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Names in a directory, sorted; those that are no text are left out.
pub(crate) fn entries(dir: impl AsFd) -> Result<Vec<String>, Errno> {
    Ok(typed_entries(dir)?.into_iter().map(|(name, _)| name).collect())
}

/// The same with what they are, as far as the directory tells.
pub(super) fn typed_entries(dir: impl AsFd) -> Result<Vec<(String, FileType)>, Errno> {
    let mut names: Vec<(String, FileType)> = rustix::fs::Dir::read_from(dir)?
        .filter_map(|entry| match entry {
            Ok(entry) => {
                let name = entry.file_name().to_str().ok()?.to_owned();
                Some(Ok((name, entry.file_type())))
            }
            Err(errno) => Some(Err(errno)),
        })
        .collect::<Result<_, _>>()?;
    names.retain(|(name, _)| name != "." && name != "..");
    names.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(names)
}
