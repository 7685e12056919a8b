//! Units of the SCSI controllers, looked for when the host says that one is there.
//!
//! The controllers tell the guest nothing by themselves: of what comes and goes on them it hears from
//! the host, over the bridge. A controller's own word comes late and out of order. Seen: word that a
//! unit is there that was just given up, which then kept the next disk from its place; word that one is
//! gone that another disk had taken. So exactly one unit is looked at, and only when its disk is there.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::pci;

/// A disk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Which controller, from 0, in the order of their slots.
    pub controller: u32,
    /// Which unit of it.
    pub lun: u32,
}

/// Searches take turns: one that is under way could bring back a unit that another has given up. It
/// tells whether the controllers were looked through that came with the driver.
static SEARCH: Mutex<bool> = Mutex::new(false);

/// Has the kernel look for the disk at `unit`. With a serial, whatever else it takes to be there is let
/// go of first: the host has only this disk there.
pub fn search(unit: Unit, serial: Option<&str>) {
    let mut looked = SEARCH.lock().unwrap_or_else(PoisonError::into_inner);
    if !*looked {
        *looked = search_everywhere();
    }
    let Some(host) = host(unit.controller) else { return };
    let folder = folder(host, unit.lun);
    if folder.exists() {
        if serial.is_none() || serial_of(&folder).as_deref() == serial {
            return;
        }
        if let Err(error) = eject(&folder) {
            let unit = format!("{}:{}", unit.controller, unit.lun);
            tracing::warn!(unit, error = &error as &dyn std::error::Error, "a unit stays");
        }
    }
    scan(&Path::new("/sys/class/scsi_host").join(format!("host{host}")), &unit.lun.to_string());
}

/// Has the kernel look for all disks, for a host that does not say where its disks are. It does not look
/// by itself (`scsi_mod.scan=manual`): it would ask all 256 targets of a controller one by one, where
/// QEMU puts every disk on target 0.
pub fn search_everything() {
    let mut looked = SEARCH.lock().unwrap_or_else(PoisonError::into_inner);
    *looked |= search_everywhere();
}

/// Has the kernel look for the disks of a controller that came as a PCI device.
pub fn search_behind(address: &str) {
    let _turn = SEARCH.lock().unwrap_or_else(PoisonError::into_inner);
    for host in hosts().filter(|host| pci::is_behind(host, address)) {
        scan(&host, "-");
    }
}

/// False when there is no controller: their driver is not loaded yet.
fn search_everywhere() -> bool {
    hosts().inspect(|host| scan(host, "-")).count() > 0
}

fn hosts() -> impl Iterator<Item = PathBuf> {
    entries(Path::new("/sys/class/scsi_host")).into_iter()
}

fn scan(host: &Path, lun: &str) {
    // A controller that does not scan has nothing to find; the wait for its disk ends that.
    let _ = fs::write(host.join("scan"), format!("0 0 {lun}"));
}

/// The folders in `/sys/block` of what is at `unit`, if that has this serial.
pub fn blocks(unit: Unit, serial: Option<&str>) -> Vec<PathBuf> {
    let Some(host) = host(unit.controller) else { return Vec::new() };
    let folder = folder(host, unit.lun);
    if serial.is_some() && serial_of(&folder).as_deref() != serial {
        return Vec::new();
    }
    let blocks = entries(&folder.join("block")).into_iter();
    blocks.filter_map(|block| Some(Path::new("/sys/block").join(block.file_name()?))).collect()
}

fn folder(host: u32, lun: u32) -> PathBuf {
    PathBuf::from(format!("/sys/bus/scsi/devices/{host}:0:0:{lun}"))
}

/// The number of the n-th virtio SCSI host. Hosts are numbered in the order of their slots.
fn host(controller: u32) -> Option<u32> {
    let mut hosts: Vec<u32> = hosts()
        .filter(|host| {
            fs::read_to_string(host.join("proc_name"))
                .is_ok_and(|name| name.trim() == "virtio_scsi")
        })
        .filter_map(|host| host.file_name()?.to_str()?.strip_prefix("host")?.parse().ok())
        .collect();
    hosts.sort_unstable();
    hosts.get(usize::try_from(controller).ok()?).copied()
}

/// Makes the kernel forget a unit, given its folder in sysfs.
pub fn eject(device: &Path) -> io::Result<()> {
    // Never made by us: what is not there any more is no file to create.
    fs::File::options().write(true).open(device.join("delete"))?.write_all(b"1")
}

/// What a unit says is its serial, in page 0x80 of its vital product data; given its folder in sysfs.
pub fn serial_of(device: &Path) -> Option<String> {
    serial_from_page(&fs::read(device.join("vpd_pg80")).ok()?)
}

/// Page 0x80: four bytes of header, the last two the length, then the serial, perhaps padded.
fn serial_from_page(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_at_checked(4)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let text = std::str::from_utf8(rest.get(..length)?).ok()?;
    Some(text.trim_matches(|c: char| c == ' ' || c == '\0').to_owned())
}

pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_is_read_from_page_0x80() {
        assert_eq!(serial_from_page(b"\0\x80\0\x06rootfs"), Some("rootfs".to_owned()));
        assert_eq!(serial_from_page(b"\0\x80\0\x08rootfs  "), Some("rootfs".to_owned()));
        assert_eq!(serial_from_page(b"\0\x80\0\x09rootfs"), None);
        assert_eq!(serial_from_page(b"\0\x80"), None);
    }

    #[test]
    fn a_unit_of_a_controller_that_is_not_there_has_no_disks() {
        let unit = Unit { controller: 250, lun: 1 };
        search(unit, Some("disk-1"));
        assert!(blocks(unit, None).is_empty());
    }
}
