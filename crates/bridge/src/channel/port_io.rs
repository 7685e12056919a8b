//! A port's descriptor as an asynchronous reader and writer.
//!
//! While no host is connected, a virtio-serial port reports a hang-up and reads as end of file, and
//! both are over when the next host comes. tokio takes a hang-up for final, so the descriptor sits in
//! an epoll set of its own, edge-triggered, and tokio watches that set. An end of file here means "no
//! host now": the read after it waits until something changes.
//!
//! Every message that QEMU takes interrupts the guest, to say that there is room for another. Room is
//! asked for only once a write found none: a flood would else wake its own writer 32 times per MiB.
//!
//! Both directions must be polled by the same task: there is one place for a waker.

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a buffer of the driver holds.
const PAGE: usize = 4096;
/// Pages read at once.
const PAGES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct PortIo {
    port: OwnedFd,
    events: AsyncFd<OwnedFd>,
    may_read: bool,
    may_write: bool,
    /// A write found no room, and the set is to say when there is some.
    wants_room: bool,
}

impl PortIo {
    /// Takes a port opened with `O_NONBLOCK`.
    pub(crate) fn new(port: OwnedFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, &port, epoll::EventData::new_u64(0), wanted(false))?;
        let events = super::sys::watch(set)?;
        Ok(PortIo { port, events, may_read: true, may_write: true, wants_room: false })
    }

    /// Tries to write at once; what does not go is forgotten.
    pub(crate) fn offer(&self, bytes: &[u8]) {
        // Whether the host hears this is no more certain than whether there is a host.
        let _ = rustix::io::write(&self.port, bytes);
    }

    /// Waits for something to have changed at the port.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.events.poll_read_ready(cx))?;
        let mut seen: Vec<epoll::Event> = Vec::with_capacity(1);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(guard.get_inner().as_fd(), spare_capacity(&mut seen), Some(&at_once))?;
        guard.clear_ready();
        for event in seen {
            // With a hang-up all is to be tried anew, but a write only if there is one that waits.
            let flags = event.flags;
            self.may_read |= flags.intersects(!epoll::EventFlags::OUT);
            self.may_write |= self.wants_room;
        }
        if self.may_write && self.wants_room {
            self.want_room(false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Has the set say when there is room, or no longer. If there is some by now, it says so.
    fn want_room(&mut self, is_wanted: bool) -> io::Result<()> {
        let set = self.events.get_ref();
        epoll::modify(set, &self.port, epoll::EventData::new_u64(0), wanted(is_wanted))?;
        self.wants_room = is_wanted;
        Ok(())
    }
}

fn wanted(room: bool) -> epoll::EventFlags {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    if room { flags | epoll::EventFlags::OUT } else { flags }
}

impl AsyncRead for PortIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.may_read {
                ready!(this.poll_events(cx))?;
                continue;
            }
            // The kernel gives no more than one of its pages for each part.
            let mut pages = buf.initialize_unfilled().chunks_mut(PAGE);
            let mut parts: [_; PAGES] =
                std::array::from_fn(|_| IoSliceMut::new(pages.next().unwrap_or_default()));
            match rustix::io::readv(&this.port, &mut parts) {
                Ok(n) => {
                    this.may_read = n > 0;
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN) => this.may_read = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for PortIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if !this.may_write {
                ready!(this.poll_events(cx))?;
                continue;
            }
            match rustix::io::write(&this.port, bytes) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(rustix::io::Errno::AGAIN) => {
                    this.may_write = false;
                    this.want_room(true)?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
