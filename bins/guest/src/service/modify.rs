//! Resources of the VM: disks, layers, persistent memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{CombinedLayers, MappedVirtualDisk, Resource, Verb, VpmemDevice};
use coracle_bridge::server::ServiceError;

use super::Agent;
use super::errors::failed;
use crate::container;
use crate::storage::disk::{self, APPEAR_TIMEOUT, DiskAddress};
use crate::storage::mount::{Mounter, unmount};
use crate::storage::{overlay, pmem};

impl Agent {
    pub(super) async fn modify_vm(&self, change: Change) -> Result<(), ServiceError> {
        let mounter = Arc::clone(&self.mounter);
        // Waiting for a device and mounting it block.
        tokio::task::spawn_blocking(move || apply(&mounter, change.verb, change.resource))
            .await
            .map_err(ServiceError::failed)?
    }
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
        (Resource::VpmemDevice(device), Verb::Add) => add_pmem(mounter, &device),
        (Resource::VpmemDevice(device), Verb::Remove) => remove(&device.mount_path),
        (Resource::CombinedLayers(layers), Verb::Add) => combine(mounter, &layers),
        (Resource::CombinedLayers(layers), Verb::Remove) => {
            remove(&layers.container_root_path)?;
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
    match disk.coracle.as_ref().filter(|extra| !extra.serial.is_empty()) {
        Some(extra) => DiskAddress::Serial(extra.serial.clone()),
        None => DiskAddress::Lun { controller: disk.controller.into(), lun: disk.lun.into() },
    }
}

/// A disk without a mount path is only attached, which the host has done.
fn add_disk(mounter: &Mounter, disk: &MappedVirtualDisk) -> Result<(), ServiceError> {
    if disk.mount_path.is_empty() {
        return Ok(());
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
    pmem::attach(mounter, device.device_number, target, APPEAR_TIMEOUT)
        .map_err(|error| failed(&error))
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
