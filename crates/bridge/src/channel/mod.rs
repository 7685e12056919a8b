//! The channel: connections between a VM and its host.
//!
//! To everything above it, a VM's channel is a folder of unix sockets ([`ChannelDir`]): the host dials
//! `vsock` and names a port, or listens at `vsock_<port>` where the guest dials. Every connection has a
//! true end of file, half-close and flow control of its own; every VM has its own port space.
//!
//! Behind the folder stand, by default, two virtio-serial ports, because they need nothing of the
//! host but QEMU: no kernel module, no shared memory. They are poor byte pipes, though. They have no
//! end of file, keep old bytes for the next client, lose the tail of what a dying one sent, and QEMU
//! loses a descriptor for good whenever a client dies under back-pressure. Each layer here mends one
//! of these. An emulated VM has memory in common with its host beside them, for the larger pieces (`area`):
//!
//! ```text
//!  host                                                            guest
//!  ChannelDir, ChannelListener      folder                         GuestChannel       guest
//!     │ unix sockets                                                  │ dial, accept
//!  keeper: splices sockets and streams                             ChannelStream      mux/stream
//!     │                                                               │
//!  Mux: streams, windows, resets    mux        ◄── frames ──►      Mux
//!  Link: one session                link       ◄── records ──►     Link
//!  greet                            handshake  ◄── HELLO, WELCOME  await_hello
//!  D/control.sock, D/streams.sock   QEMU       ◄── bytes ──►       PortDevice, PortIo device
//! ```
//!
//! Instead of the two ports, one connection of the guest's AF_VSOCK can carry the records: a guest with
//! that transport listens at [`VSOCK_PORT`], and the keeper dials it through the socket of a
//! `vhost-device-vsock`. What is above the records does not notice. It is one connection, bridge and
//! all, because a daemon with two forgets the one while it looks at the other.
//!
//! The port [`BRIDGE`](crate::port::BRIDGE) has a virtio-serial port to itself, on a device of its own,
//! so that a flood of container output cannot hold up a signal.
//!
//! A session lives as long as one keeper's connection. When it ends, all its streams fail with
//! `ConnectionReset`; nothing of it is ever seen in the next. What must outlive a keeper (exit codes,
//! the output of processes) is the business of the layers above.

mod area;
pub mod device;
pub mod folder;
pub mod guest;
pub mod handshake;
pub mod keeper;
mod link;
mod mux;
mod port_io;
pub mod record;
mod sys;

pub use area::{AREA_BYTES, AREA_FILE, FreshSlot};
pub use device::{PortDevice, SharedArea, SocketPort, VirtioPort};
pub use folder::{ChannelDir, ChannelError, ChannelListener};
pub use guest::GuestChannel;
pub use mux::ChannelStream;

/// The name of the virtio-serial port that carries the bridge.
pub const CONTROL_PORT: &str = "coracle.control";
/// The name of the virtio-serial port that carries everything else.
pub const STREAMS_PORT: &str = "coracle.streams";
/// The AF_VSOCK port at which the guest is dialled instead of both.
pub const VSOCK_PORT: u32 = 1024;
