//! Memory that both ends of the channel have: bytes that need not go through the port.
//!
//! A virtio-serial port carries 32 KiB at a time towards the host and a page at a time towards the guest, and an
//! emulated processor pays for each of them. So where guest code is emulated, the VM has a small device of nothing
//! but memory (`ivshmem-plain`), which is a file to the host. Its slots carry the larger pieces of the streams; a
//! frame in a record says which slot and how much of it:
//!
//! ```text
//!            slots 0 to 15: towards the host                slots 16 to 31: towards the guest
//!
//!  guest: at home ──copied into, PLACED──► under way        guest: at home ──GRANT──► the host's to fill
//!            ▲                                │                       ▲                        │
//!            └────── the host's ACK ──────────┘                       └── read to the end ◄── PLACED
//! ```
//!
//! The guest owns all slots. One is the host's only between GRANT and PLACED, and within one session; when a session
//! ends, its slots come home, but those that are still being read: a host that comes next is granted them later.
//! The host copies out of a slot before it acknowledges it, and believes nothing it finds there.
//!
//! Either end goes on without the area at any time: what finds no slot goes through the port.

mod guest;
mod host;

pub(crate) use guest::{GuestArea, Slot};
pub(crate) use host::{HostArea, HostSlot};

/// The name of the area's file in the channel's folder.
pub const AREA_FILE: &str = "streams.area";
/// The size of the area, in bytes.
pub const AREA_BYTES: usize = SLOTS * SLOT;
/// The size of a slot, in bytes.
pub(crate) const SLOT: usize = 64 * 1024;
/// Slots towards the host, which are the first, and as many towards the guest.
pub(crate) const EACH_WAY: u8 = 16;
const SLOTS: usize = 2 * EACH_WAY as usize;

/// A slot by its number, and how much of it, from its beginning, is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The slot's number.
    pub slot: u32,
    /// Bytes.
    pub len: u32,
}

/// Where a slot begins.
fn offset(number: u8) -> usize {
    usize::from(number) * SLOT
}
