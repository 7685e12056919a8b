//! What the compiler cannot check here: a descriptor in tokio's hands, and memory shared with the host.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has tokio watch an epoll set for events to fetch.
pub(super) fn watch(set: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }?)
}

/// A file's first bytes as memory; unmapped when its last part is gone.
#[derive(Debug)]
struct Whole {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is no thread's own, and nothing is reached through a `Whole` but its end.
unsafe impl Send for Whole {}
// SAFETY: as above; a shared `Whole` gives no access at all.
unsafe impl Sync for Whole {}

impl Drop for Whole {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no part of it is left.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A part of a mapping that overlaps no other. Whoever maps the file besides us, which is the host, writes here only
/// what it was granted and reads only what it was told of: between us and it, a part has one owner at a time too.
#[derive(Debug)]
pub(super) struct Part {
    start: NonNull<u8>,
    length: usize,
    _whole: Arc<Whole>,
}

// SAFETY: a part is the only way to its bytes in this process, as a Vec is to its own.
unsafe impl Send for Part {}
// SAFETY: a shared part only reads.
unsafe impl Sync for Part {}

/// Maps the first `length` bytes of a file, in parts of `part` bytes.
///
/// # Errors
/// Those of `mmap`.
pub(super) fn map(file: &OwnedFd, length: usize, part: usize) -> io::Result<Vec<Part>> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses an address where nothing is.
    let start = unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, file, 0) }?;
    let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
    let whole = Arc::new(Whole { start, length });
    let parts = (0..length / part).map(|number| Part {
        // SAFETY: `number * part + part` is at most `length`.
        start: unsafe { start.add(number * part) },
        length: part,
        _whole: Arc::clone(&whole),
    });
    Ok(parts.collect())
}

impl Part {
    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as the part lives; nobody writes while it is borrowed, see `Part`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The same to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}
