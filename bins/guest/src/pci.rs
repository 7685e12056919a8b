//! PCI devices the host plugs in, found by their address.
//!
//! The host knows the address because the guest has told its bridges their bus numbers. A device
//! that is let go of must have no disk in use: the host pulls it out right after.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::storage::mount::Mounter;

/// Who made a virtio device.
const VIRTIO: &str = "0x1af4";

/// Why a device could not be had, or not be let go.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// It did not appear.
    #[error("no PCI device {address} appeared within {} s", timeout.as_secs())]
    Missing {
        /// Its address.
        address: String,
        /// How long we waited.
        timeout: Duration,
    },
    /// A disk of it is in use.
    #[error("the disk {disk} of PCI device {address} is mounted on {target}")]
    Mounted {
        /// The device's address.
        address: String,
        /// The disk.
        disk: String,
        /// One of the places.
        target: String,
    },
    /// The mounts could not be read.
    #[error("reading the mounts of the VM")]
    Mounts(#[source] io::Error),
}

/// Whether the text is an address as sysfs writes it: `0000:01:02.0`.
pub fn is_address(text: &str) -> bool {
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b':',
        10 => byte == b'.',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 12 && text.bytes().enumerate().all(shape)
}

/// Returns when the device is there, with drivers for what virtio devices bring.
pub fn await_device(mounter: &Mounter, address: &str, timeout: Duration) -> Result<(), PciError> {
    let folder = folder(address);
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !folder.exists() {
        if start.elapsed() > timeout {
            return Err(PciError::Missing { address: address.to_owned(), timeout });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    if fs::read_to_string(folder.join("vendor")).is_ok_and(|vendor| vendor.trim() == VIRTIO) {
        for module in ["virtio_blk", "virtio_scsi", "sd_mod"] {
            mounter.load_module(module);
        }
    }
    Ok(())
}

/// Sees that nothing of the device is in use. One that is gone is none either.
pub fn let_go(address: &str) -> Result<(), PciError> {
    let disks = disks_of(address);
    if disks.is_empty() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(PciError::Mounts)?;
    for disk in disks {
        for device in devices_of(&disk) {
            if let Some(target) = mounted_on(&mounts, &device) {
                let disk = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(PciError::Mounted { address: address.to_owned(), disk, target });
            }
        }
    }
    Ok(())
}

/// The folders in `/sys/block` of the disks behind a PCI device.
pub fn disks_of(address: &str) -> Vec<PathBuf> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let blocks = blocks.flatten().map(|entry| entry.path());
    blocks.filter(|block| is_behind(block, address)).collect()
}

/// Whether what a link in sysfs leads to belongs to the PCI device at `address`.
pub fn is_behind(link: &Path, address: &str) -> bool {
    let (at, device) = (fs::canonicalize(link), fs::canonicalize(folder(address)));
    matches!((at, device), (Ok(at), Ok(device)) if at.starts_with(&device))
}

fn folder(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

/// The numbers of a disk and its partitions, `major:minor`.
fn devices_of(disk: &Path) -> Vec<String> {
    let parts = fs::read_dir(disk).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(disk.to_owned())
        .chain(parts.filter(|part| part.join("partition").exists()))
        .filter_map(|device| Some(fs::read_to_string(device.join("dev")).ok()?.trim().to_owned()))
        .collect()
}

/// The first place where a device is mounted.
fn mounted_on(mounts: &str, device: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    line.split(' ').nth(4).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_form_of_sysfs() {
        assert!(is_address("0000:01:02.0"));
        for bad in ["", "01:02.0", "0000:01:02:0", "../../../etc/", "0000:01:02.0/"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_device_that_never_comes_is_reported_by_its_address() {
        let error = await_device(&Mounter::default(), "0000:ff:1f.7", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("0000:ff:1f.7"), "{error}");
        let_go("0000:ff:1f.7").unwrap();
    }

    #[test]
    fn a_mounted_disk_is_found_by_its_number() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
            31 1 254:16 / /run/mounts/m1 rw,relatime - ext4 /dev/vdb rw\n";
        assert_eq!(mounted_on(mounts, "254:16").as_deref(), Some("/run/mounts/m1"));
        assert_eq!(mounted_on(mounts, "254:1"), None);
    }
}
