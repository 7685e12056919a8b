//! The guest's end of the channel over AF_VSOCK: it listens, the host dials.
//!
//! Each host that comes has a connection of its own. The one before may be dead without our having been
//! told, so the newest is the one that counts.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;

use coracle_bridge::channel::PortDevice;
use libc::VMADDR_CID_ANY;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The kernel's socket family, and what carries it here; in this order, so that the host's first dial
/// finds somebody who listens.
pub const FAMILY: &str = "vsock";
/// See [`FAMILY`].
pub const TRANSPORT: &str = "vmw_vsock_virtio_transport";

/// A port at which the host dials.
#[derive(Debug)]
pub struct VsockPort {
    listener: Listener,
}

/// A runtime watches the listener from the first use on: only then is it known which.
#[derive(Debug)]
enum Listener {
    Bound(OwnedFd),
    Watched(AsyncFd<OwnedFd>),
    /// It could not be watched.
    Lost,
}

impl VsockPort {
    /// Listens at a port; the family's module is loaded.
    pub fn listen(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(listener.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))?;
        listen(&listener, Backlog::MAXCONN)?;
        Ok(Self { listener: Listener::Bound(listener) })
    }

    fn watched(&mut self) -> io::Result<&AsyncFd<OwnedFd>> {
        self.listener = match std::mem::replace(&mut self.listener, Listener::Lost) {
            Listener::Bound(bound) => Listener::Watched(sys::watch(bound)?),
            watched => watched,
        };
        match &self.listener {
            Listener::Watched(watched) => Ok(watched),
            Listener::Bound(_) | Listener::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl PortDevice for VsockPort {
    /// The newest connection; those before it are closed.
    fn open(&mut self) -> io::Result<OwnedFd> {
        let watched = self.watched()?;
        let mut newest = None;
        loop {
            match watched.try_io(Interest::READABLE, accept) {
                Ok(connection) => newest = Some(connection),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return newest.ok_or_else(|| io::ErrorKind::NotFound.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn rebind(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wears_out(&self) -> bool {
        false
    }

    fn superseded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            match self.watched() {
                // Of a listener that fails the next open tells.
                Ok(watched) => drop(watched.readable().await),
                Err(_) => std::future::pending().await,
            }
        })
    }
}

fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(sys::received(accept4(listener.as_raw_fd(), flags)?))
}
