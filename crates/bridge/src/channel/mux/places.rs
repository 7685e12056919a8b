//! One session's use of the area: what may be placed there, and what was.

use super::MuxError;
use super::outflow::Side;
use crate::channel::area::{GuestArea, HostArea, HostSlot, Place, SLOT, Slot};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::Context;

/// Less than this is not worth a slot.
pub const WORTH_PLACING: usize = 8 * 1024;

/// The area as one end has it.
#[derive(Clone, Debug)]
pub(crate) enum Area {
    /// There is none.
    None,
    /// The keeper's.
    Host(Arc<HostArea>),
    /// The agent's.
    Guest(Arc<GuestArea>),
}

/// See the module.
#[derive(Debug)]
pub(crate) enum Places {
    None,
    Host {
        area: Arc<HostArea>,
        /// What was copied out last; its memory is used again.
        copied: Vec<u8>,
    },
    Guest {
        area: Arc<GuestArea>,
        /// The host said that it reads what is placed.
        host_reads: bool,
        /// The host has enough to send that slots are of use to it.
        is_granting: bool,
        /// What it may fill, by number.
        granted: HashMap<u32, Slot>,
    },
}

/// A slot with bytes for the peer.
#[derive(Debug)]
pub(super) enum Filled {
    Host(HostSlot),
    Guest(Slot),
    /// One that was read into, which others may have too.
    Lent(Arc<Slot>),
}

impl Places {
    pub(super) fn new(area: Area) -> Self {
        match area {
            Area::None => Places::None,
            Area::Host(area) => Places::Host { area, copied: Vec::new() },
            Area::Guest(area) => Places::Guest {
                area,
                host_reads: false,
                is_granting: false,
                granted: HashMap::new(),
            },
        }
    }

    /// What the host says of itself with READY.
    pub(super) fn reads(&self) -> bool {
        match self {
            Places::Host { .. } => true,
            Places::None | Places::Guest { .. } => false,
        }
    }

    /// Takes the host's READY.
    pub(super) fn on_ready(&mut self, has_area: bool) {
        if let Places::Guest { host_reads, .. } = self {
            *host_reads = has_area;
        }
    }

    /// The most data one frame of this side may carry.
    pub(super) fn most_data(&self, side: Side) -> usize {
        match self {
            Places::Host { .. } | Places::Guest { host_reads: true, .. } => SLOT,
            Places::None | Places::Guest { host_reads: false, .. } => side.most_data(),
        }
    }

    /// A slot to fill, if there is one.
    pub(super) fn take(&self) -> Option<Filled> {
        match self {
            Places::Host { area, .. } => area.take().map(Filled::Host),
            Places::Guest { area, host_reads: true, .. } => area.take_outgoing().map(Filled::Guest),
            Places::None | Places::Guest { host_reads: false, .. } => None,
        }
    }

    /// The slot that these bytes lie in, and where in it.
    pub(super) fn hold(&self, bytes: &[u8]) -> Option<(Filled, usize)> {
        match self {
            Places::Guest { area, host_reads: true, .. } if bytes.len() >= WORTH_PLACING => {
                area.hold(bytes).map(|(slot, from)| (Filled::Lent(slot), from))
            }
            Places::None | Places::Host { .. } | Places::Guest { .. } => None,
        }
    }

    /// Whether a writer does better to wait for a slot: all wait for the host, which answers soon. A host does not
    /// wait, as a guest may have all its slots for as long as nobody reads there.
    pub(super) fn are_exhausted(&self) -> bool {
        match self {
            Places::Guest { area, host_reads: true, .. } => area.is_exhausted(),
            Places::None | Places::Host { .. } | Places::Guest { host_reads: false, .. } => false,
        }
    }

    /// Notes that the peer has sent so many bytes through the port.
    pub(super) fn on_data(&mut self, len: usize) {
        if let Places::Guest { host_reads: true, is_granting, .. } = self {
            *is_granting |= len >= WORTH_PLACING;
        }
    }

    /// The next slot to grant. Wakes the task when one comes home.
    pub(super) fn grant(&mut self, cx: &Context<'_>) -> Option<u32> {
        let Places::Guest { area, is_granting: true, granted, .. } = self else { return None };
        let slot = area.take_incoming(cx)?;
        let number = u32::from(slot.number());
        granted.insert(number, slot);
        Some(number)
    }

    /// Takes a grant.
    pub(super) fn on_grant(&self, slot: u32) -> Result<(), MuxError> {
        match self {
            Places::Host { area, .. } if area.grant(slot) => Ok(()),
            Places::None | Places::Host { .. } | Places::Guest { .. } => Err(MuxError::Slot(slot)),
        }
    }

    /// What the peer has placed.
    pub(super) fn on_placed(&mut self, place: Place) -> Result<Placed<'_>, MuxError> {
        let number = u32::from(place.slot);
        let wrong = MuxError::Slot(number);
        match self {
            Places::None => Err(wrong),
            Places::Host { area, copied } => {
                area.read(place, copied).map_err(|_| wrong)?;
                Ok(Placed::Copy(copied))
            }
            Places::Guest { granted, .. } => {
                let placed = granted.remove(&number).zip(place.range());
                placed.map(|(slot, range)| Placed::Slot(slot, range)).ok_or(wrong)
            }
        }
    }

    /// The session is over: what was granted comes home.
    pub(super) fn end(&mut self) {
        *self = Places::None;
    }
}

/// What was placed, for its reader.
#[derive(Debug)]
pub(super) enum Placed<'a> {
    /// Copied out, as what the guest says must be.
    Copy(&'a [u8]),
    /// Where the host has put it.
    Slot(Slot, Range<usize>),
}

impl Filled {
    pub(super) fn number(&self) -> u8 {
        match self {
            Filled::Host(slot) => slot.number(),
            Filled::Guest(slot) => slot.number(),
            Filled::Lent(slot) => slot.number(),
        }
    }

    /// Writes as much as there is room for from `at`, and says how much.
    ///
    /// # Errors
    /// Those of the slot; then nothing is written.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(SLOT.saturating_sub(at))];
        match self {
            Filled::Host(slot) => slot.write(at, bytes)?,
            Filled::Guest(slot) => slot.write(at, bytes)?,
            // It is others' to read.
            Filled::Lent(_) => return Ok(0),
        }
        Ok(bytes.len())
    }

    /// Its frame is on its way. What the guest placed stays its own until the host has acknowledged it.
    pub(super) fn sent(self) -> Option<Filled> {
        match self {
            Filled::Host(slot) => {
                slot.spend();
                None
            }
            Filled::Guest(_) | Filled::Lent(_) => Some(self),
        }
    }
}
