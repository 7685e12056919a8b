//! A port's descriptor as an asynchronous reader and writer.
//!
//! While no host is connected, a virtio-serial port reports a hang-up and reads as end of file, and
//! both are over when the next host comes. tokio takes a hang-up for final, so the descriptor sits in
//! an epoll set of its own, edge-triggered, and tokio watches that set. An end of file here means "no
//! host now": the read after it waits until something changes.
//!
//! Both directions must be polled by the same task: there is one place for a waker.

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module.
#[derive(Debug)]
pub(crate) struct PortIo {
    port: OwnedFd,
    events: AsyncFd<OwnedFd>,
    may_read: bool,
    may_write: bool,
}

impl PortIo {
    /// Takes a port opened with `O_NONBLOCK`.
    pub(crate) fn new(port: OwnedFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&set, &port, epoll::EventData::new_u64(0), flags)?;
        let events = super::sys::watch(set)?;
        Ok(PortIo { port, events, may_read: true, may_write: true })
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
        if !seen.is_empty() {
            (self.may_read, self.may_write) = (true, true);
        }
        Poll::Ready(Ok(()))
    }
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
            match rustix::io::read(&this.port, buf.initialize_unfilled()) {
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
                Err(rustix::io::Errno::AGAIN) => this.may_write = false,
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
