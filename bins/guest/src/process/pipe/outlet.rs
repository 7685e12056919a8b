//! The end that a workload writes to.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use coracle_bridge::channel::{FreshSlot, SharedArea};
use coracle_bridge::stdio::PIECE;
use futures_util::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot::Receiver;

use super::{CHUNK, lock, widen};
use crate::process::drain::Rest;
use crate::process::hand::Hand;
use crate::sys;

/// Bytes read at first; a pipe that has more is read in chunks from then on.
const FIRST: usize = 16 * 1024;

/// Pieces of memory kept for the next reads.
const SPARES: usize = 2;

/// Slots read into at once, which hold about a chunk.
const SLOTS: usize = CHUNK / (64 * 1024);

/// What a workload writes, in pieces as they were read: into memory in common with the host, from where they are sent
/// without a copy, if there is some and much to read, and else into memory of our own.
#[derive(Debug)]
pub struct Outlet {
    pipe: Source,
    state: Reading,
    /// Read, and not yet asked for.
    pieces: VecDeque<Bytes>,
    area: Option<SharedArea>,
    shelf: Arc<Shelf>,
    hand: Hand,
}

/// The reading end. The runtime that first asks for its bytes watches it: another would be woken for each
/// of them only to wake the one that reads.
#[derive(Debug)]
enum Source {
    Fresh(Option<OwnedFd>),
    Watched(Watched),
}

type Watched = Arc<AsyncFd<OwnedFd>>;

#[derive(Debug)]
enum Reading {
    /// Not before it is asked for. Whether the read before found something.
    Idle { is_busy: bool },
    /// Under way.
    Busy(Receiver<rustix::io::Result<Read>>),
}

/// What was read; nothing at the end.
#[derive(Debug)]
enum Read {
    /// The memory, with what was read in it.
    Memory(Vec<u8>),
    Pieces(VecDeque<Bytes>),
}

/// Memory whose bytes have been dealt with.
#[derive(Debug, Default)]
struct Shelf(Mutex<Vec<Vec<u8>>>);

/// Bytes in memory that goes back to its shelf, if there still is one.
struct Lent {
    memory: Vec<u8>,
    shelf: Weak<Shelf>,
}

impl Shelf {
    fn take(&self) -> Option<Vec<u8>> {
        lock(&self.0).pop()
    }

    fn put(&self, memory: Vec<u8>) {
        let mut spares = lock(&self.0);
        if spares.len() < SPARES {
            spares.push(memory);
        }
    }

    /// What was read, and its memory either with it or back on the shelf: little must not hold much.
    fn lend(self: &Arc<Self>, memory: Vec<u8>) -> Bytes {
        if memory.len() < memory.capacity() / 2 {
            let bytes = Bytes::copy_from_slice(&memory);
            self.put(memory);
            return bytes;
        }
        Bytes::from_owner(Lent { memory, shelf: Arc::downgrade(self) })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(shelf) = self.shelf.upgrade() {
            shelf.put(std::mem::take(&mut self.memory));
        }
    }
}

impl Outlet {
    /// Takes over the reading end of a pipe, which must not block. It is to be read in a tokio runtime.
    pub fn new(pipe: OwnedFd, area: Option<SharedArea>) -> Self {
        widen(&pipe);
        let pipe = Source::Fresh(Some(pipe));
        let state = Reading::Idle { is_busy: false };
        Self {
            pipe,
            state,
            pieces: VecDeque::new(),
            area,
            shelf: Arc::default(),
            hand: Hand::default(),
        }
    }
}

impl Rest for Outlet {
    fn is_at_rest(&self) -> bool {
        let is_idle = matches!(self.state, Reading::Idle { .. });
        is_idle
            && self.pieces.is_empty()
            && match &self.pipe {
                Source::Fresh(pipe) => !pipe.as_ref().is_some_and(is_ready),
                Source::Watched(pipe) => !is_ready(pipe.get_ref()),
            }
    }
}

impl Source {
    fn watched(&mut self) -> io::Result<&Watched> {
        if let Source::Fresh(pipe) = self {
            let pipe = pipe.take().ok_or(io::ErrorKind::BrokenPipe)?;
            *self = Source::Watched(Arc::new(sys::watch(pipe)?));
        }
        match self {
            Source::Watched(pipe) => Ok(pipe),
            Source::Fresh(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Whether there is something to read, by a question that takes no lock of it.
fn is_ready(pipe: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    // A question that fails is answered by the read itself.
    poll(&mut asked, PollTimeout::ZERO).map_or(true, |count| count > 0)
}

/// Until it may be read. What the runtime believes is put right by asking: an event that
/// comes between the belief and the question is not lost, as the runtime then believes anew.
fn poll_ready(pipe: &Watched, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    loop {
        let mut guard = ready!(pipe.poll_read_ready(cx))?;
        if is_ready(pipe.get_ref()) {
            return Poll::Ready(Ok(()));
        }
        guard.clear_ready();
    }
}

/// Reads what is there, into fresh memory if there is no other.
fn read(pipe: &OwnedFd, mut memory: Vec<u8>, most: usize) -> rustix::io::Result<Vec<u8>> {
    memory.clear();
    memory.reserve_exact(most);
    loop {
        match rustix::io::read(pipe, spare_capacity(&mut memory)) {
            Err(Errno::INTR) => {}
            read => return read.map(|_| memory),
        }
    }
}

/// Reads what is there, as much as the slots take of what becomes a frame each.
fn read_into(pipe: &OwnedFd, mut slots: Vec<FreshSlot>) -> rustix::io::Result<VecDeque<Bytes>> {
    let mut parts: Vec<_> =
        slots.iter_mut().map(|slot| IoSliceMut::new(&mut slot.bytes_mut()[..PIECE])).collect();
    let mut left = loop {
        match rustix::io::readv(pipe, &mut parts) {
            Err(Errno::INTR) => {}
            read => break read?,
        }
    };
    let mut pieces = VecDeque::new();
    for mut slot in slots {
        let length = left.min(PIECE);
        left -= length;
        match length {
            0 => break,
            // Little must not hold much.
            1..FIRST => pieces.push_back(Bytes::copy_from_slice(&slot.bytes_mut()[..length])),
            FIRST.. => pieces.push_back(slot.freeze(length)),
        }
    }
    Ok(pieces)
}

impl Stream for Outlet {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.pieces.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            match &mut this.state {
                Reading::Idle { is_busy } => {
                    let pipe = this.pipe.watched()?;
                    let Poll::Ready(ready) = poll_ready(pipe, cx) else {
                        // Quiet for now: its memory is for others, what is under way included.
                        *is_busy = false;
                        this.shelf = Arc::default();
                        return Poll::Pending;
                    };
                    ready?;
                    let pipe = Arc::clone(pipe);
                    let area = this.area.as_ref().filter(|_| *is_busy);
                    let slots = area.map_or_else(Vec::new, |area| area.fresh_slots(SLOTS));
                    let job = if slots.is_empty() {
                        let most = if *is_busy { CHUNK } else { FIRST };
                        let memory = this.shelf.take().unwrap_or_default();
                        this.hand
                            .start(move || read(pipe.get_ref(), memory, most).map(Read::Memory))
                    } else {
                        this.hand.start(move || read_into(pipe.get_ref(), slots).map(Read::Pieces))
                    };
                    this.state = Reading::Busy(job?);
                }
                Reading::Busy(job) => {
                    let done = ready!(Pin::new(job).poll(cx));
                    this.state = Reading::Idle { is_busy: true };
                    match done.map_err(|_| io::Error::other("the thread of a pipe is gone"))? {
                        Ok(Read::Memory(memory)) if memory.is_empty() => return Poll::Ready(None),
                        Ok(Read::Memory(memory)) => {
                            return Poll::Ready(Some(Ok(this.shelf.lend(memory))));
                        }
                        Ok(Read::Pieces(pieces)) if pieces.is_empty() => return Poll::Ready(None),
                        Ok(Read::Pieces(pieces)) => this.pieces = pieces,
                        Err(Errno::AGAIN) => {}
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::tests::not_blocking;
    use futures_util::StreamExt;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    #[test]
    fn little_is_copied_and_the_memory_of_much_comes_back_to_a_shelf_that_is_still_there() {
        let shelf = Arc::<Shelf>::default();
        let memory = |length: usize| {
            let mut memory = Vec::with_capacity(1000);
            memory.resize(length, 7);
            memory
        };
        let little = shelf.lend(memory(10));
        assert_eq!((little.len(), lock(&shelf.0).len()), (10, 1), "its memory is free at once");
        let much = shelf.lend(memory(900));
        let part = much.slice(100..200);
        drop(much);
        assert_eq!(lock(&shelf.0).len(), 1, "someone still has a part of it");
        drop(part);
        assert_eq!(lock(&shelf.0).len(), 2);
        let late = shelf.lend(shelf.take().unwrap());
        drop(shelf);
        drop(late);
    }

    /// The other side splices from a socket on which nothing comes, and holds the pipe's lock.
    #[tokio::test]
    async fn a_pipe_whose_lock_is_held_stops_nobody() {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut outlet = Outlet::new(not_blocking(from), None);
        nix::unistd::write(&to, b"x").unwrap();
        let (silent, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let holder = std::thread::spawn(move || {
            use nix::fcntl::{SpliceFFlags, splice};
            splice(&silent, None, &to, None, 100, SpliceFFlags::empty())
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, async {
            tokio::select! {
                // Whether the lock is held while waiting depends on the kernel.
                _ = outlet.next() => {}
                () = tokio::time::sleep(std::time::Duration::from_millis(300)) => {}
            }
        })
        .await
        .expect("this thread goes on");
        drop(other);
        holder.join().unwrap().unwrap();
    }
}
