//! PCI addresses and what can stand behind a PCI device.

use std::{fmt, os::fd::OwnedFd, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{DeviceId, VmmError};

/// Where a PCI function is: `domain:bus:slot.function`, as in `0000:3b:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// The domain (segment), 0 on most machines.
    pub domain: u32,
    /// The bus, 0 to 255.
    pub bus: u8,
    /// The slot, 0 to 31.
    pub slot: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, slot, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{slot:02x}.{function}")
    }
}

impl FromStr for PciAddress {
    type Err = VmmError;

    /// Reads an address as sysfs writes it; the domain may be left out.
    fn from_str(text: &str) -> Result<Self, VmmError> {
        parse(text).ok_or_else(|| VmmError::PciAddress { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let hex = |digits: &str, most: usize| {
        let is_plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
        (is_plain && (1..=most).contains(&digits.len()))
            .then(|| u32::from_str_radix(digits, 16).ok())?
    };
    let (place, function) = text.split_once('.')?;
    let mut parts = place.rsplit(':');
    let (slot, bus, domain) = (parts.next()?, parts.next()?, parts.next());
    if parts.next().is_some() {
        return None;
    }
    let address = PciAddress {
        domain: domain.map_or(Some(0), |domain| hex(domain, 8))?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        slot: u8::try_from(hex(slot, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (address.slot < 32 && address.function < 8).then_some(address)
}

impl TryFrom<String> for PciAddress {
    type Error = VmmError;
    fn try_from(text: String) -> Result<Self, VmmError> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

/// A PCI device that is plugged in behind a bridge.
#[derive(Debug)]
pub struct PciDevice {
    /// Its name.
    pub id: DeviceId,
    /// What it is.
    pub source: PciSource,
}

/// What stands behind a PCI device.
#[derive(Debug)]
pub enum PciSource {
    /// A function of the host that `vfio-pci` holds. All of the guest's memory is pinned.
    Host(PciAddress),
    /// A mediated device of the host, by its folder in sysfs. The same is pinned as for any other.
    Mediated(PathBuf),
    /// QEMU's device for teaching, which nothing of the host stands behind.
    Teaching,
    /// A disk another process serves by vhost-user-blk, on this connection. The VM's memory must be
    /// [`crate::MemoryBacking::Shared`].
    Disk(OwnedFd),
    /// A SCSI controller another process serves by vhost-user-scsi; as [`PciSource::Disk`].
    Controller(OwnedFd),
    /// The guest's AF_VSOCK, which another process serves by vhost-user-vsock; as [`PciSource::Disk`].
    Vsock(OwnedFd),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_read_as_sysfs_writes_it_and_without_its_domain() {
        let address = PciAddress { domain: 0, bus: 0x3b, slot: 0x1f, function: 7 };
        assert_eq!("0000:3b:1f.7".parse::<PciAddress>().unwrap(), address);
        assert_eq!("3b:1f.7".parse::<PciAddress>().unwrap(), address);
        assert_eq!(address.to_string(), "0000:3b:1f.7");
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for text in ["", "1f.7", "3b:20.0", "3b:00.8", "0:3b:00", "3b:+0.0", "0:0:3b:00.0", "g:0.0"]
        {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_address_is_read_back(domain: u32, bus: u8, slot in 0..32_u8, function in 0..8_u8) {
            let address = PciAddress { domain, bus, slot, function };
            prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
        }
    }
}
