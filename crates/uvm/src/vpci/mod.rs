//! PCI devices of the host, and those other processes serve, in the VM.
//!
//! ```text
//!   assign: reserve ─► take from the host's driver ─► plug in ─► the guest sees it at its address
//!   remove: the guest lets go ─► unplug ─► give back to the host's driver ─► release
//! ```
//!
//! A device is named by its *instance path*:
//!
//! | path | what it is |
//! |---|---|
//! | `0000:3b:00.0` | a function of the host's PCI bus, handed over by VFIO |
//! | `/sys/bus/mdev/devices/UUID` | a mediated device of the host, by VFIO |
//! | `vhost-user-blk:SOCKET` | a disk a vhost-user server serves, such as `qemu-storage-daemon` |
//! | `vhost-user-scsi:SOCKET` | a SCSI controller with what is on it, likewise |
//! | `emulated:edu` | QEMU's device for teaching, for those who write drivers |
//!
//! VFIO pins all of the guest's memory: the VM must be physically backed
//! ([`crate::options::Options::allow_overcommit`] false). A vhost-user server works in the guest's
//! memory: the VM must be made with [`crate::options::HostOptions::share_memory`]. Assigning a
//! device that is assigned counts another use of it.

mod access;
mod assign;
mod bus;
mod claim;
mod disk;
mod error;
mod source;

use std::collections::BTreeMap;

use coracle_vmm::{DeviceId, PciAddress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::errors::Result;
use crate::lifecycle::{UtilityVm, locked};
use crate::plug::{Saved, Shelf, to_the_end};
use crate::schema::VirtualPciDevice;
use access::Held;
use source::Source;

pub use disk::VhostUserDisk;
pub use error::VpciError;

/// The devices of a VM, by instance path.
#[derive(Debug, Default)]
pub(crate) struct Vpci {
    counter: u32,
    shelf: Shelf<String, Place>,
    /// What is known of those that have arrived.
    there: BTreeMap<String, There>,
    /// Of devices the VM would not let go of: given back when it is gone.
    stranded: Vec<Held>,
}

/// The devices as they are written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedVpci {
    counter: u32,
    shelf: Vec<Saved<String, Place>>,
    there: BTreeMap<String, There>,
    stranded: Vec<Held>,
}

impl SavedVpci {
    /// Devices on their way in or out.
    pub(crate) fn underway(&self) -> Vec<(String, Place)> {
        let underway = self.shelf.iter().filter(|thing| thing.is_underway);
        underway.map(|thing| (thing.key.clone(), thing.value.clone())).collect()
    }
}

/// What is chosen for a device when it is reserved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    id: Uuid,
    number: u32,
    source: Source,
}

/// A device that has arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct There {
    address: PciAddress,
    held: Option<Held>,
}

/// A PCI device of a VM (seed `VPCIDevice`).
#[derive(Debug)]
#[doc(alias = "VPCIDevice")]
pub struct VpciDevice {
    /// Its id, a GUID; the same for all uses of one device.
    #[doc(alias = "ID")]
    pub id: String,
    /// Where the guest sees it.
    pub address: PciAddress,
    vm: UtilityVm,
}

impl VpciDevice {
    /// Ends this use of the device.
    ///
    /// # Errors
    /// As [`UtilityVm::remove_device`].
    #[doc(alias = "Release")]
    pub async fn release(&self) -> Result<()> {
        self.vm.remove_device(&self.id).await
    }
}

impl UtilityVm {
    /// Assigns a PCI device; returns when the guest sees it.
    ///
    /// A device of the host is taken from its driver, and given back to it when it is removed or the
    /// VM closed. All devices of its IOMMU group must be free of drivers: they could reach each
    /// other's memory.
    ///
    /// Cancel safe: a caller that goes away leaves the device as if it had not asked.
    ///
    /// # Errors
    /// [`crate::UvmError::VpciDisabled`] unless the VM was made with
    /// [`crate::options::OptionsLcow::vpci_enabled`]; [`crate::UvmError::VpciMemory`],
    /// [`crate::UvmError::MemoryNotShared`]; [`crate::UvmError::Vpci`] with what is wrong with the
    /// device; the host or the guest refuses: nothing is left then, and the device is with its former
    /// driver.
    #[doc(alias = "AssignDevice")]
    pub async fn assign_device(&self, device: VirtualPciDevice) -> Result<VpciDevice> {
        let vm = self.clone();
        let assign = async move {
            let (id, address) = vm.machine.assign_device(&device).await?;
            Ok(VpciDevice { id, address, vm })
        };
        to_the_end(assign, |device: VpciDevice| async move {
            if let Err(error) = device.release().await {
                tracing::error!(%error, "a device nobody wants stays assigned");
            }
        })
        .await
    }

    /// Ends one use of a device; with the last it is unplugged and given back to the host.
    ///
    /// # Errors
    /// [`crate::UvmError::NoVpciDevice`]; the guest does not let go, because a disk of it is mounted
    /// for example; the host's former driver does not take it back. The use stays, and removing can
    /// be tried again.
    #[doc(alias = "RemoveDevice")]
    pub async fn remove_device(&self, id: &str) -> Result<()> {
        let (machine, id) = (self.machine.clone(), id.to_owned());
        to_the_end(async move { machine.remove_device(&id).await }, |()| async {}).await
    }

    /// The handle of a device that is assigned, by its id: for who has adopted the VM.
    pub fn assigned_device(&self, id: &str) -> Option<VpciDevice> {
        let all = self.assigned_devices();
        let (id, address) = all.into_values().find(|(known, _)| known == id)?;
        Some(VpciDevice { id, address, vm: self.clone() })
    }

    /// How often each device is assigned, by its id.
    pub fn device_uses(&self) -> BTreeMap<String, u32> {
        let vpci = locked(&self.machine.vpci);
        let counted = vpci.shelf.counted();
        let ids: BTreeMap<&String, Uuid> = vpci.shelf.iter().map(|(p, at)| (p, at.id)).collect();
        let named = |(path, uses)| Some((ids.get(&path)?.to_string(), uses));
        counted.into_iter().filter_map(named).collect()
    }

    /// The id and the guest's address of every device that is assigned, by instance path.
    pub fn assigned_devices(&self) -> BTreeMap<String, (String, PciAddress)> {
        let vpci = locked(&self.machine.vpci);
        let known = vpci.shelf.iter().filter_map(|(path, place)| {
            let there = vpci.there.get(path)?;
            Some((path.clone(), (place.id.to_string(), there.address)))
        });
        known.collect()
    }
}

/// Gives back what a VM that is gone had of the host.
pub(crate) async fn give_all_back(saved: &SavedVpci) -> Result<()> {
    assign::give_all_back(saved).await
}

impl Place {
    fn device(&self) -> DeviceId {
        DeviceId::new(format!("pci{}", self.number))
            .expect("`pci` and a number are a device's name")
    }
}
