//! Disks that are there from power-on, mounted in the guest.

use coracle_bridge::message::{CoracleDisk, MappedVirtualDisk, Resource, Verb};

use crate::errors::{Result, UvmError};
use crate::lifecycle::Machine;
use crate::options::{ColdDisk, ColdMount};

/// Mounts every cold disk that has a mount point, in order.
pub(crate) async fn mount_all(machine: &Machine) -> Result<()> {
    for disk in machine.cold_disks() {
        let Some(mount) = &disk.mount else { continue };
        let mounted = machine.modify_guest(Verb::Add, mapped(disk, mount)).await;
        mounted.map_err(|source| UvmError::Modify {
            operation: "mount the disk",
            object: disk.serial.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The request for a disk, which the guest finds by its serial; on a controller it has no place.
fn mapped(disk: &ColdDisk, mount: &ColdMount) -> Resource {
    Resource::MappedVirtualDisk(MappedVirtualDisk {
        mount_path: mount.path.clone(),
        read_only: disk.read_only,
        coracle: Some(CoracleDisk {
            serial: disk.serial.clone(),
            filesystem: mount.filesystem.clone(),
            keep: false,
            ..CoracleDisk::default()
        }),
        ..MappedVirtualDisk::default()
    })
}
