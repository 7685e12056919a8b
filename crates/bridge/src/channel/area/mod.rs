//! Memory that both ends of the channel have: bytes that need not go through the port.
//!
//! A virtio-serial port carries 32 KiB at a time towards the host and a page at a time towards the guest, and an
//! emulated processor pays for each of them. So where guest code is emulated, the VM has a small device of nothing
//! but memory (`ivshmem-plain`), which is a file to the host. Its slots carry the larger pieces of the streams; a
//! frame in a record says which slot and how much of it:
//!
//! ```text
//!            slots 0 to 23: towards the host                slots 24 to 31: towards the guest
//!
//!  guest: at home ────filled, PLACED────► under way         guest: at home ──GRANT──► the host's to fill
//!            ▲                                │                       ▲                        │
//!            └────── the host's ACK ──────────┘                       └── read to the end ◄── PLACED
//! ```
//!
//! The guest owns all slots. One is the host's only between GRANT and PLACED, and within one session; when a session
//! ends, its slots come home, but those that are still being read: a host that comes next is granted them later.
//! The host copies out of a slot before it acknowledges it, and believes nothing it finds there.
//!
//! What is sent is copied into a slot, or was read into one: whoever reads something for the host can ask for slots
//! to read into ([`SharedArea`](super::SharedArea)), and then has [`Bytes`](bytes::Bytes) that go out without a copy.
//! Such a slot comes home when the last of its bytes is dropped and the host has acknowledged it.
//!
//! Either end goes on without the area at any time: what finds no slot goes through the port.

mod guest;
mod host;

pub use guest::FreshSlot;
pub(crate) use guest::{GuestArea, Slot};
pub(crate) use host::{HostArea, HostSlot};

/// The name of the area's file in the channel's folder.
pub const AREA_FILE: &str = "streams.area";
/// The size of the area, in bytes.
pub const AREA_BYTES: usize = SLOTS * SLOT;
/// The size of a slot, in bytes.
pub(crate) const SLOT: usize = 64 * 1024;
/// Slots towards the host, which are the first.
pub(crate) const TO_HOST: u8 = 24;
/// Slots towards the guest.
pub(crate) const TO_GUEST: u8 = 8;
const SLOTS: usize = TO_HOST as usize + TO_GUEST as usize;

/// Bytes in a slot, all in units of bytes but the slot's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The slot's number.
    pub slot: u16,
    /// Where in the slot they begin, below 2^24.
    pub from: u32,
    /// How many they are, below 2^24.
    pub len: u32,
}

impl Place {
    /// The range within a slot, if there is one.
    pub(crate) fn range(self) -> Option<std::ops::Range<usize>> {
        let (from, len) = (usize::try_from(self.from).ok()?, usize::try_from(self.len).ok()?);
        let to = from.checked_add(len).filter(|to| *to <= SLOT)?;
        Some(from..to)
    }
}

/// Where a slot begins.
fn offset(number: u8) -> usize {
    usize::from(number) * SLOT
}
