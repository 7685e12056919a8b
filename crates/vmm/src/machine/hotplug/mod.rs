//! Plugging devices into a running VM and out again.
//!
//! Each kind of device stands on something on the monitor's side (a block node on a set of
//! descriptors, a network backend, a character device), made before it and removed after it. A
//! step that fails undoes those before it, in reverse. The names of all parts follow from the
//! device's id, so that whoever adopts the VM can unplug what its predecessor plugged in:
//!
//! | device | stands on |
//! |---|---|
//! | disk `d` | block node `d`, descriptor set noted `d` |
//! | nic `n` | network backend `n.net` |
//! | serial port `p` | controller `p.hub`, character device `p.chr` |
//! | share `s` | character device `s.chr` |
//! | pmem `m` | memory `m.mem`, both until the VM ends |
//! | PCI device `p` | character device `p.chr`, if another process serves it |

mod disk;
mod nic;
mod pci;
mod pmem;
mod port;
mod share;

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use crate::{
    Device, DeviceId, PciAddress, VmmError,
    effect::Effects,
    qemu::device as shape,
    qmp::{
        Client, QmpError,
        command::{
            AddFd, BlockdevDel, ChardevRemove, Command, DeviceAdd, DeviceDel, NetdevDel, QomList,
            QueryFdsets, RemoveFd,
        },
    },
};

/// How often an unplug looks for itself whether the device is gone, in case the event was lost.
const LOOK: Duration = Duration::from_millis(500);

/// How long a device that is gone may hold what it stood on.
const LET_GO: Duration = Duration::from_secs(2);

/// Between two looks whether it has let go.
const LET_GO_LOOK: Duration = Duration::from_millis(10);

/// Where QEMU lists the devices that have an id.
const PERIPHERALS: &str = "/machine/peripheral";

pub(super) async fn plug(shared: &Shared, device: Device) -> Result<(), VmmError> {
    let bench = Bench { shared, client: shared.client().await? };
    if bench.devices().await?.iter().any(|name| name == device.id().as_str()) {
        return Err(VmmError::DeviceExists { id: device.id().clone() });
    }
    match device {
        Device::Disk(disk) => bench.plug_disk(disk).await,
        Device::Nic(nic) => bench.plug_nic(nic).await,
        Device::SerialPort(port) => bench.plug_port(port).await,
        Device::Share(share) => bench.plug_share(share).await,
        Device::Pmem(pmem) => bench.plug_pmem(pmem).await,
        Device::Pci(pci) => bench.plug_pci(pci).await,
    }
}

/// Where the memory of a pmem device begins in the guest.
pub(super) async fn pmem_address(shared: &Shared, id: &DeviceId) -> Result<u64, VmmError> {
    Bench { shared, client: shared.client().await? }.pmem_address(id).await
}

/// Where the guest sees a PCI device.
pub(super) async fn pci_address(shared: &Shared, id: &DeviceId) -> Result<PciAddress, VmmError> {
    Bench { shared, client: shared.client().await? }.pci_address(id).await
}

pub(super) async fn unplug(
    shared: &Shared,
    id: &DeviceId,
    patience: Duration,
) -> Result<(), VmmError> {
    let bench = Bench { shared, client: shared.client().await? };
    let deadline = Instant::now() + patience;
    let late = |error| match error {
        Wait::Late => VmmError::UnplugTimeout { id: id.clone(), timeout: patience },
        Wait::Failed(error) => error,
    };
    let hub = shape::port_hub_id(id);
    let devices = bench.devices().await?;
    let mut found = false;
    for name in [id.as_str(), &hub] {
        if devices.iter().any(|device| device == name) {
            found = true;
            bench.remove_device(name, deadline).await.map_err(late)?;
        }
    }
    // An earlier attempt may have run out of time when the device was as good as gone, so what
    // it stood on is looked for in any case.
    if bench.remove_backends(id).await? || found {
        return Ok(());
    }
    Err(VmmError::UnknownDevice { id: id.clone() })
}

/// Why a device is not gone yet.
enum Wait {
    Late,
    Failed(VmmError),
}

impl From<VmmError> for Wait {
    fn from(error: VmmError) -> Self {
        Wait::Failed(error)
    }
}

/// A descriptor that the monitor has for a while.
struct Lent {
    /// What the monitor finds behind it, while it has it.
    path: String,
    /// Takes it away.
    back: RemoveFd,
}

/// The VM's workbench: its connection, and names for failures.
struct Bench<'a> {
    shared: &'a Shared,
    client: Client,
}

impl Bench<'_> {
    fn effects(&self) -> &Effects {
        &self.shared.effects
    }

    async fn run<C: Command>(&self, command: C) -> Result<C::Reply, VmmError> {
        self.shared.result(C::NAME, self.client.run(command).await)
    }

    /// Runs a step of an undo, whose own failure can only be noted.
    async fn undo<C: Command>(&self, command: C) {
        if let Err(error) = self.client.run(command).await {
            tracing::warn!(step = C::NAME, %error, "undo of a plug");
        }
    }

    /// The ids of all devices.
    async fn devices(&self) -> Result<Vec<String>, VmmError> {
        let list = self.run(QomList { path: PERIPHERALS.into() }).await?;
        Ok(list
            .into_iter()
            .filter(|item| item.kind.starts_with("child<"))
            .map(|item| item.name)
            .collect())
    }

    /// Gives the monitor a descriptor of something it takes by path only.
    async fn lend(&self, id: &DeviceId, file: OwnedFd) -> Result<Lent, VmmError> {
        let added = self.client.run_with(AddFd { opaque: id.to_string() }, file).await;
        let added = self.shared.result(AddFd::NAME, added)?;
        let path = format!("/proc/self/fd/{}", added.fd);
        Ok(Lent { path, back: RemoveFd { fdset_id: added.fdset_id } })
    }

    /// Adds a PCI device behind the first bridge with a free place.
    async fn add_behind_bridge(
        &self,
        id: &DeviceId,
        device: impl Fn(&str) -> serde_json::Value,
    ) -> Result<(), VmmError> {
        let devices = self.devices().await?;
        for bridge in devices.iter().filter(|name| shape::is_bridge(name)) {
            match self.add_device(id, device(bridge)).await {
                Err(VmmError::Full { .. }) => {}
                other => return other,
            }
        }
        Err(VmmError::Full { id: id.clone() })
    }

    /// Adds a device, telling apart why there is no room for it.
    async fn add_device(&self, id: &DeviceId, device: serde_json::Value) -> Result<(), VmmError> {
        let error = match self.client.run(DeviceAdd(device)).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let QmpError::Refused { desc, .. } = &error else {
            return Err(self.shared.failure(DeviceAdd::NAME, error));
        };
        let id = id.clone();
        // QEMU has one class for all of these; its words are what there is to go by.
        if desc.contains("no slot/function available") {
            return Err(VmmError::Full { id });
        }
        if desc.starts_with("Duplicate") && desc.contains("ID") {
            return Err(VmmError::DeviceExists { id });
        }
        if desc.contains("already used") || desc.contains("already exists") {
            return Err(VmmError::PlaceTaken { id, why: desc.clone() });
        }
        if desc.starts_with("Bus ") && desc.ends_with("not found") {
            return Err(VmmError::NoSuchPlace { id, why: desc.clone() });
        }
        Err(self.shared.failure(DeviceAdd::NAME, error))
    }

    /// Asks for a device's removal and waits until it is gone.
    async fn remove_device(&self, name: &str, deadline: Instant) -> Result<(), Wait> {
        let mut events = self.client.events();
        self.effects().announce("device.remove").map_err(Wait::Failed)?;
        match self.client.run(DeviceDel { id: name.to_owned() }).await {
            Ok(_) => {}
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(()),
            // The guest was asked before and has not answered yet.
            Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {}
            Err(error) => return Err(Wait::Failed(self.shared.failure(DeviceDel::NAME, error))),
        }
        loop {
            let deleted = async {
                while let Ok(event) = events.recv().await {
                    if event.name == "DEVICE_DELETED" && event.text("device") == Some(name) {
                        return true;
                    }
                }
                false
            };
            tokio::select! {
                gone = timeout_at(deadline, deleted) => match gone {
                    Ok(true) => return Ok(()),
                    Ok(false) => sleep(LOOK).await,
                    Err(_) => return Err(Wait::Late),
                },
                () = sleep(LOOK) => {}
            }
            if !self.devices().await?.iter().any(|device| device == name) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Wait::Late);
            }
        }
    }

    /// Removes whatever a device of this id stood on; says whether there was anything.
    async fn remove_backends(&self, id: &DeviceId) -> Result<bool, VmmError> {
        self.effects().announce("device.backend")?;
        let mut found = self.attempt(BlockdevDel { node_name: id.to_string() }).await?;
        // QEMU only marks a set while the VM is paused and goes on listing it: no sign of a
        // device, and removed for good by the next unplug or when its owner disconnects.
        for set in self.run(QueryFdsets {}).await? {
            if set.fds.iter().any(|fd| fd.opaque.as_deref() == Some(id.as_str())) {
                self.attempt(RemoveFd { fdset_id: set.fdset_id }).await?;
            }
        }
        found |= self.attempt(NetdevDel { id: shape::nic_backend(id) }).await?;
        found |= self.attempt(ChardevRemove { id: shape::port_chardev(id) }).await?;
        if let Some(socket) = self.shared.sockets().remove(id) {
            // QEMU knows it by a path through our descriptors and cannot remove it itself.
            let _ = std::fs::remove_file(socket);
        }
        Ok(found)
    }

    /// Runs a removal; false when there is nothing to remove. A device that is on no list any more
    /// holds what it stood on for some 50 ms yet, which only matters to who did not hear of its end
    /// because a former owner had asked for it.
    async fn attempt<C: Command + Clone>(&self, command: C) -> Result<bool, VmmError> {
        let deadline = Instant::now() + LET_GO;
        loop {
            match self.client.run(command.clone()).await {
                Ok(_) => return Ok(true),
                Err(QmpError::Refused { desc, .. }) if is_absent(&desc) => return Ok(false),
                Err(QmpError::Refused { desc, .. })
                    if is_held(&desc) && Instant::now() < deadline =>
                {
                    sleep(LET_GO_LOOK).await;
                }
                Err(error) => return Err(self.shared.failure(C::NAME, error)),
            }
        }
    }
}

/// Whether QEMU says that something still stands on what it should remove.
fn is_held(desc: &str) -> bool {
    desc.contains(" is in use") || desc.ends_with(" is busy")
}

/// Whether QEMU says that what it should remove is not there; only its words tell.
fn is_absent(desc: &str) -> bool {
    desc.starts_with("Failed to find") || desc.ends_with("not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 has it in `blockdev.c`, `net/net.c`, `chardev/char.c`.
    #[test]
    fn what_is_held_is_told_from_what_is_absent() {
        for desc in ["Node d is in use", "Chardev 'd' is busy"] {
            assert!(is_held(desc) && !is_absent(desc), "{desc}");
        }
        for desc in ["Failed to find node with node-name='d'", "Device 'd' not found"] {
            assert!(is_absent(desc) && !is_held(desc), "{desc}");
        }
        assert!(!is_held("Node d is not owned by the monitor"));
    }
}
