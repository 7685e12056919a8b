//! Resources of the VM: disks, layers, persistent memory, shares, pipes, and what of them containers
//! see.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{
    CombinedLayers, MappedDirectory, MappedVirtualDisk, Resource, Verb, VpciDevice, VpmemDevice,
};
use coracle_bridge::server::ServiceError;

use super::Agent;
use super::errors::failed;
use crate::container;
use crate::pci;
use crate::storage::disk::{self, APPEAR_TIMEOUT, DiskAddress};
use crate::storage::mount::{Mounter, unmount};
use crate::storage::scsi::Unit;
use crate::storage::{overlay, plan9, pmem, resources, virtiofs};

impl Agent {
    pub(super) async fn modify_vm(&self, change: Change) -> Result<(), ServiceError> {
        let Change { verb, resource, .. } = change;
        match (resource, verb) {
            (Resource::MappedDirectory(share), Verb::Add) => self.add_share(share).await,
            (Resource::Pipe(pipe), Verb::Add) => self
                .pipes
                .add(self.channel.clone(), Path::new(&pipe.path), pipe.port)
                .map_err(|error| failed(&error)),
            (Resource::Pipe(pipe), Verb::Remove) => {
                self.pipes.remove(Path::new(&pipe.path)).map_err(|error| failed(&error))
            }
            (Resource::Network(adapter), Verb::Add) => self.add_adapter(adapter).await,
            (Resource::Network(adapter), Verb::Remove) => self.remove_adapter(adapter).await,
            (Resource::ContainerMount(mount), Verb::Add) => self.show(mount).await,
            (Resource::ContainerMount(mount), Verb::Remove) => self.hide(mount).await,
            (resource, verb) => {
                let mounter = Arc::clone(&self.mounter);
                blocking(move || apply(&mounter, verb, resource)).await
            }
        }
    }

    /// Mounts a share: by its tag from a device, or by its port from a server on the host.
    async fn add_share(&self, share: MappedDirectory) -> Result<(), ServiceError> {
        let mounter = Arc::clone(&self.mounter);
        let tag = share.coracle.clone().map(|extra| extra.tag).filter(|tag| !tag.is_empty());
        if let Some(tag) = tag {
            return blocking(move || {
                let target = Path::new(&share.mount_path);
                virtiofs::attach(&mounter, &tag, target, share.read_only, APPEAR_TIMEOUT)
                    .map_err(|error| failed(&error))
            })
            .await;
        }
        let server = self.channel.dial(share.port).await.map_err(|error| {
            ServiceError::failed(format!("dialling the server of a share: {error}"))
        })?;
        blocking(move || {
            let target = Path::new(&share.mount_path);
            plan9::attach(&mounter, server, &share.share_name, target, share.read_only)
                .map_err(|error| failed(&error))
        })
        .await
    }
}

/// Runs what waits for devices, mounts, or enters a container on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::task::spawn_blocking(work).await.map_err(ServiceError::failed)?
}

fn apply(mounter: &Mounter, verb: Verb, resource: Resource) -> Result<(), ServiceError> {
    match (resource, verb) {
        (Resource::MappedVirtualDisk(disk), Verb::Add) => add_disk(mounter, &disk),
        (Resource::MappedVirtualDisk(disk), Verb::Remove) => {
            let target = Some(Path::new(&disk.mount_path)).filter(|_| !disk.mount_path.is_empty());
            let keep = disk.coracle.as_ref().is_some_and(|extra| extra.keep);
            match target {
                Some(target) if keep => unmount(target).map_err(|error| failed(&error)),
                target => disk::detach(&address(&disk), target).map_err(|error| failed(&error)),
            }
        }
        (Resource::MappedDirectory(share), Verb::Remove) => remove(&share.mount_path),
        (Resource::GuestResources(resources), Verb::Update) => {
            if resources.processors > 0 {
                resources::set_processors(resources.processors, APPEAR_TIMEOUT)
                    .map_err(|error| failed(&error))?;
            }
            if resources.memory {
                resources::prepare_memory(mounter).map_err(|error| failed(&error))?;
            }
            Ok(())
        }
        (Resource::VpmemDevice(device), Verb::Add) => add_pmem(mounter, &device),
        (Resource::VpmemDevice(device), Verb::Remove) => remove(&device.mount_path),
        (Resource::VpciDevice(device), Verb::Add) => {
            pci::await_device(mounter, &pci_address(&device)?, APPEAR_TIMEOUT)
                .map_err(|error| failed(&error))
        }
        (Resource::VpciDevice(device), Verb::Remove) => {
            pci::let_go(&pci_address(&device)?).map_err(|error| failed(&error))
        }
        (Resource::CombinedLayers(layers), Verb::Add) => combine(mounter, &layers),
        (Resource::CombinedLayers(layers), Verb::Remove) => {
            remove(&layers.container_root_path)?;
            if layers.coracle.is_some_and(|extra| extra.discard) {
                overlay::discard(Path::new(&layers.scratch_path))
                    .map_err(|error| failed(&error))?;
            }
            container::forget_bundle_of(Path::new(&layers.container_root_path));
            Ok(())
        }
        (resource, Verb::Add | Verb::Remove | Verb::PreAdd | Verb::Update) => {
            let kind = resource.resource_type();
            let text = format!("this guest does not support {} of {kind}", name(verb));
            Err(ServiceError::not_implemented(text))
        }
    }
}

fn name(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "Add",
        Verb::Remove => "Remove",
        Verb::PreAdd => "PreAdd",
        Verb::Update => "Update",
    }
}

fn address(disk: &MappedVirtualDisk) -> DiskAddress {
    let unit = Unit { controller: disk.controller.into(), lun: disk.lun.into() };
    let Some(extra) = &disk.coracle else { return DiskAddress::Scsi { unit, serial: None } };
    let serial = Some(extra.serial.clone()).filter(|serial| !serial.is_empty());
    match serial {
        _ if !extra.pci.is_empty() => DiskAddress::Pci(extra.pci.clone()),
        Some(serial) if !extra.unit => DiskAddress::Serial(serial),
        serial => DiskAddress::Scsi { unit, serial },
    }
}

/// A device is found by what only our host says of it.
fn pci_address(device: &VpciDevice) -> Result<String, ServiceError> {
    let address = device.coracle.as_ref().map(|extra| extra.address.as_str()).unwrap_or_default();
    if !pci::is_address(address) {
        let text = format!("{address:?} is no PCI address, and this guest has no VMBus");
        return Err(ServiceError::invalid(text));
    }
    Ok(address.to_owned())
}

/// A disk without a mount path is only attached, which the host has done; one with a serial is waited
/// for all the same, so that it is there when the host hears of it.
fn add_disk(mounter: &Mounter, disk: &MappedVirtualDisk) -> Result<(), ServiceError> {
    if disk.mount_path.is_empty() {
        return match address(disk) {
            DiskAddress::Scsi { serial: None, .. } => Ok(()),
            known => {
                disk::await_attached(mounter, &known).map(drop).map_err(|error| failed(&error))
            }
        };
    }
    if disk.encrypted {
        return Err(ServiceError::not_implemented("this guest has no encrypted disks"));
    }
    if disk.verity_info.is_some() {
        return Err(ServiceError::not_implemented("this guest does not verify disks"));
    }
    let filesystem = disk.coracle.as_ref().map(|extra| extra.filesystem.as_str());
    let filesystem = filesystem.filter(|name| !name.is_empty());
    let target = Path::new(&disk.mount_path);
    disk::attach(mounter, &address(disk), target, filesystem, disk.read_only)
        .map_err(|error| failed(&error))
}

fn add_pmem(mounter: &Mounter, device: &VpmemDevice) -> Result<(), ServiceError> {
    if device.mapping_info.is_some() || device.verity_info.is_some() {
        return Err(ServiceError::not_implemented("this guest mounts whole pmem devices only"));
    }
    let target = Path::new(&device.mount_path);
    let which = match &device.coracle {
        Some(extra) => pmem::Which::Address(extra.address),
        None => pmem::Which::Number(device.device_number),
    };
    let filesystem = device.coracle.as_ref().map(|extra| extra.filesystem.as_str());
    pmem::attach(mounter, which, filesystem, target, APPEAR_TIMEOUT).map_err(|error| failed(&error))
}

fn combine(mounter: &Mounter, layers: &CombinedLayers) -> Result<(), ServiceError> {
    let lower: Vec<PathBuf> =
        layers.layers.iter().map(|layer| PathBuf::from(&layer.path)).collect();
    if lower.is_empty() {
        return Err(ServiceError::invalid("there are no layers to combine"));
    }
    let scratch = Some(Path::new(&layers.scratch_path)).filter(|path| !path.as_os_str().is_empty());
    let target = Path::new(&layers.container_root_path);
    overlay::attach(mounter, &overlay::Layers { lower: &lower, scratch }, target)
        .map_err(|error| failed(&error))
}

fn remove(path: &str) -> Result<(), ServiceError> {
    unmount(Path::new(path)).map_err(|error| failed(&error))
}
