//! Disks that are there from power-on, mounted in the guest.

use coracle_bridge::message::{CoracleDisk, MappedVirtualDisk, Resource, Verb};

use crate::errors::{Result, UvmError};
use crate::lifecycle::Machine;
use crate::options::{ColdDisk, ColdMount, SCSI_LUNS};

/// Mounts every cold disk that has a mount point, in order.
pub(crate) async fn mount_all(machine: &Machine) -> Result<()> {
    for (number, disk) in (0..).zip(machine.cold_disks()) {
        let Some(mount) = &disk.mount else { continue };
        let mounted = machine.modify_guest(Verb::Add, mapped(number, disk, mount)).await;
        mounted.map_err(|source| UvmError::Modify {
            operation: "mount the disk",
            object: disk.serial.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The request for the `number`-th disk; disks fill the controllers in order.
fn mapped(number: u16, disk: &ColdDisk, mount: &ColdMount) -> Resource {
    let luns = u16::from(SCSI_LUNS);
    let small = |value: u16| u8::try_from(value).unwrap_or(u8::MAX);
    Resource::MappedVirtualDisk(MappedVirtualDisk {
        mount_path: mount.path.clone(),
        lun: small(number % luns),
        controller: small(number / luns),
        read_only: disk.read_only,
        coracle: Some(CoracleDisk {
            serial: disk.serial.clone(),
            filesystem: mount.filesystem.clone(),
        }),
        ..MappedVirtualDisk::default()
    })
}
