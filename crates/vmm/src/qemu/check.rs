//! What a configuration must satisfy before anything is done for it. Pure.

use std::collections::BTreeSet;

use crate::{Disk, DiskPlace, Pmem, VmConfig, VmmError};

/// QEMU's limit for a disk's serial number.
const SERIAL_MAX: usize = 36;
/// The serial number of a virtio disk has a field of its own in the device.
const VIRTIO_SERIAL_MAX: usize = 20;

/// Logical units from here on are numbered differently by the guest.
const LUN_MAX: u32 = 255;

pub(crate) fn check(config: &VmConfig) -> Result<(), VmmError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    demand(!config.name.is_empty() && config.name.bytes().all(plain), || {
        format!("name {:?} holds more than letters, digits, '.', '_' and '-'", config.name)
    })?;
    demand((1..=255).contains(&config.vcpus), || {
        format!("{} virtual CPUs; 1 to 255 are possible", config.vcpus)
    })?;
    demand(config.memory.size.0 > 0, || "no memory".into())?;
    demand(config.scsi_controllers <= 4, || {
        format!("{} SCSI controllers; at most 4 are possible", config.scsi_controllers)
    })?;
    if let Some(gap) = config.memory.low_mmio_gap {
        demand((512..=3072).contains(&gap.0), || {
            format!("a low MMIO gap of {gap}; 512 to 3072 MiB are possible")
        })?;
    }
    let mut ids = BTreeSet::new();
    let devices = (config.disks.iter().map(|disk| &disk.id))
        .chain(config.pmem.iter().map(|pmem| &pmem.id))
        .chain(config.serial_ports.iter().map(|port| &port.id));
    for id in devices {
        if !ids.insert(id) {
            return Err(VmmError::DeviceExists { id: id.clone() });
        }
    }
    config.disks.iter().try_for_each(|disk| {
        check_disk(disk)?;
        match disk.place {
            DiskPlace::Scsi { controller, .. } => {
                demand(controller < config.scsi_controllers, || {
                    format!(
                        "disk {} on controller {controller}, of {}",
                        disk.id, config.scsi_controllers
                    )
                })
            }
            DiskPlace::Virtio => Ok(()),
        }
    })?;
    config.pmem.iter().try_for_each(check_pmem)?;
    for port in &config.serial_ports {
        demand(!port.name.is_empty() && port.name.bytes().all(plain), || {
            format!("serial port name {:?}", port.name)
        })?;
    }
    Ok(())
}

/// A disk in itself, for one plugged in later as well.
pub(crate) fn check_disk(disk: &Disk) -> Result<(), VmmError> {
    let most = match disk.place {
        DiskPlace::Scsi { lun, .. } => {
            demand(lun <= LUN_MAX, || {
                format!("disk {} at logical unit {lun}; 0 to {LUN_MAX} are possible", disk.id)
            })?;
            SERIAL_MAX
        }
        DiskPlace::Virtio => VIRTIO_SERIAL_MAX,
    };
    let printable = disk.serial.bytes().all(|byte| byte.is_ascii_graphic());
    demand(printable && disk.serial.len() <= most, || {
        format!("disk {} with serial number {:?}", disk.id, disk.serial)
    })
}

fn check_pmem(pmem: &Pmem) -> Result<(), VmmError> {
    demand(pmem.size > 0 && pmem.size.is_multiple_of(4096), || {
        format!("persistent memory {} of {} bytes, not a multiple of 4096", pmem.id, pmem.size)
    })
}

fn demand(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), VmmError> {
    if holds { Ok(()) } else { Err(VmmError::Config(complaint())) }
}
