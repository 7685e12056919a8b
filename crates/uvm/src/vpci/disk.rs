//! A disk that a vhost-user-blk server serves, mounted in the guest.

use coracle_bridge::message::{CoracleDisk, MappedVirtualDisk, Resource, Verb};

use super::VpciDevice;
use crate::errors::{Result, UvmError};
use crate::lifecycle::UtilityVm;
use crate::plug::to_the_end;
use crate::schema::VirtualPciDevice;

/// A disk served by another process, mounted in the guest.
#[derive(Debug)]
pub struct VhostUserDisk {
    /// Its device.
    pub device: VpciDevice,
    /// Where it is mounted.
    pub uvm_path: String,
}

impl VhostUserDisk {
    /// Unmounts the disk and takes it out.
    ///
    /// # Errors
    /// The guest cannot unmount it, or as [`UtilityVm::remove_device`]: it can be tried again.
    pub async fn release(&self) -> Result<()> {
        let (vm, resource) = (self.device.vm.clone(), self.resource("", true));
        let (id, path) = (self.device.id.clone(), self.uvm_path.clone());
        let remove = async move {
            let asked = vm.machine.ask_guest(Verb::Remove, resource).await;
            asked.map_err(|source| {
                let operation = "failed to unmount the served disk at";
                UvmError::Modify { operation, object: path, source }
            })?;
            vm.machine.remove_device(&id).await
        };
        to_the_end(remove, |()| async {}).await
    }

    fn resource(&self, filesystem: &str, read_only: bool) -> Resource {
        Resource::MappedVirtualDisk(MappedVirtualDisk {
            mount_path: self.uvm_path.clone(),
            read_only,
            coracle: Some(CoracleDisk {
                filesystem: filesystem.to_owned(),
                keep: true,
                pci: self.device.address.to_string(),
                ..CoracleDisk::default()
            }),
            ..MappedVirtualDisk::default()
        })
    }
}

impl UtilityVm {
    /// Plugs in the disk that a vhost-user-blk server serves on `socket` and mounts it at `uvm_path`.
    /// The file system (`ext4`, `xfs`, `erofs`; empty: whatever is there) is mounted as the server
    /// allows, read-only if asked.
    ///
    /// Cancel safe: a caller that goes away leaves nothing.
    ///
    /// # Errors
    /// As [`UtilityVm::assign_device`]; the guest cannot mount it: nothing is left then.
    pub async fn add_vhost_user_disk(
        &self,
        socket: &str,
        uvm_path: &str,
        filesystem: &str,
        read_only: bool,
    ) -> Result<VhostUserDisk> {
        if uvm_path.is_empty() {
            return Err(UvmError::NoUvmPath);
        }
        let (vm, uvm_path) = (self.clone(), uvm_path.to_owned());
        let device = VirtualPciDevice::at(format!("vhost-user-blk:{socket}"));
        let filesystem = if filesystem.is_empty() { "auto" } else { filesystem }.to_owned();
        let add = async move {
            let (id, address) = vm.machine.assign_device(&device).await?;
            let device = VpciDevice { id, address, vm: vm.clone() };
            let disk = VhostUserDisk { device, uvm_path };
            let mount = disk.resource(&filesystem, read_only);
            let Err(source) = vm.machine.ask_guest(Verb::Add, mount).await else {
                return Ok(disk);
            };
            if let Err(error) = vm.machine.remove_device(&disk.device.id).await {
                tracing::error!(%error, "a disk the guest does not mount stays plugged in");
            }
            let operation = "failed to mount the served disk at";
            Err(UvmError::Modify { operation, object: disk.uvm_path, source })
        };
        to_the_end(add, |disk: VhostUserDisk| async move {
            if let Err(error) = disk.release().await {
                tracing::error!(%error, "a disk nobody wants stays mounted");
            }
        })
        .await
    }
}
