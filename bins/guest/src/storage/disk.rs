//! Disks, found by the serial the host gave them.
//!
//! The order in which the kernel finds disks means nothing, and with several controllers neither
//! does their address; the serial is the one name both sides know. A disk appears some time after
//! the host plugged it in, long after on a busy machine, so looking for it means waiting for it.
//! For a host that gives no serial, there is hcsshim's address: controller and LUN.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter, unmount};
use super::superblock::{self, SuperblockError};
use crate::pci;

/// How long a disk may take to appear.
pub const APPEAR_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a disk that is being let go of may take to be gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks for the file system that is on the disk.
const AUTO: &str = "auto";

/// Why a disk could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It did not appear.
    #[error("no disk {address} appeared within {} s", timeout.as_secs())]
    Missing {
        /// Which disk.
        address: DiskAddress,
        /// How long we waited.
        timeout: Duration,
    },
    /// Two disks answer to one name.
    #[error("{count} disks answer to {address}")]
    Ambiguous {
        /// Which disk.
        address: DiskAddress,
        /// How many.
        count: usize,
    },
    /// A file system we do not mount.
    #[error("the file system {kind:?} of disk {address} is none of ext4, erofs, xfs")]
    Filesystem {
        /// Which disk.
        address: DiskAddress,
        /// The file system asked for.
        kind: String,
    },
    /// What is on it could not be told.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// It could not be mounted or unmounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel could not be told to forget it.
    #[error("ejecting the disk {}", device.display())]
    Eject {
        /// Its folder in sysfs.
        device: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What the host calls a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskAddress {
    /// Its serial.
    Serial(String),
    /// The LUN on the n-th SCSI controller.
    Lun {
        /// Which controller, from 0.
        controller: u32,
        /// Which unit of it.
        lun: u32,
    },
    /// The only disk behind a PCI device.
    Pci(String),
}

impl std::fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "with serial {serial:?}"),
            Self::Lun { controller, lun } => write!(f, "{controller}:{lun}"),
            Self::Pci(address) => write!(f, "of PCI device {address}"),
        }
    }
}

/// Mounts the disk on `target` (mode 0700). `auto` mounts whatever file system is on it.
pub fn attach(
    mounter: &Mounter,
    address: &DiskAddress,
    target: &Path,
    filesystem: Option<&str>,
    read_only: bool,
) -> Result<(), DiskError> {
    let asked = filesystem.unwrap_or("ext4");
    if asked != AUTO {
        options(address, asked, read_only)?;
    }
    load_drivers(mounter, address);
    let device = wait_for(address, APPEAR_TIMEOUT)?;
    let kind = if asked == AUTO { superblock::kind_of(&device)? } else { asked };
    let (flags, data) = options(address, kind, read_only)?;
    let mount = Mount { from: &device, target, kind, flags, data, mode: 0o700 };
    match mounter.mount(&mount) {
        // The kernel has one file system per disk, and that is writable: this view of it is not.
        Err(MountError::Mount { source: Errno::EBUSY, .. }) if read_only => {
            mounter.mount_again(&device, target, mount.mode)?;
        }
        other => other?,
    }
    Ok(())
}

/// Returns when the disk is there, with its node.
pub fn await_attached(mounter: &Mounter, address: &DiskAddress) -> Result<PathBuf, DiskError> {
    load_drivers(mounter, address);
    wait_for(address, APPEAR_TIMEOUT)
}

/// How a file system is mounted.
fn options(
    address: &DiskAddress,
    kind: &str,
    read_only: bool,
) -> Result<(MsFlags, &'static str), DiskError> {
    // A journal must not be replayed onto a disk others may be reading.
    match (kind, read_only) {
        ("ext4", true) => Ok((MsFlags::MS_RDONLY, "noload")),
        ("xfs", true) => Ok((MsFlags::MS_RDONLY, "norecovery,nouuid")),
        ("xfs", false) => Ok((MsFlags::empty(), "nouuid")),
        ("erofs", _) => Ok((MsFlags::MS_RDONLY, "")),
        ("ext4", false) => Ok((MsFlags::empty(), "")),
        _ => {
            let (address, kind) = (address.clone(), kind.to_owned());
            Err(DiskError::Filesystem { address, kind })
        }
    }
}

/// Unmounts `target`, if there is one, and makes the kernel forget the disk, so that the host can
/// pull it out. A disk that is gone already is what was wanted.
pub fn detach(address: &DiskAddress, target: Option<&Path>) -> Result<(), DiskError> {
    if let Some(target) = target {
        unmount(target)?;
    }
    for block in candidates(address) {
        let device = block.join("device");
        match eject(&device) {
            Ok(()) => {}
            // It is on its way: a host that gave up waiting and tried again asks twice at once.
            Err(_) if goes_within(&block, LEAVE_TIMEOUT) => {}
            Err(source) => return Err(DiskError::Eject { device, source }),
        }
    }
    Ok(())
}

fn goes_within(block: &Path, timeout: Duration) -> bool {
    let start = Instant::now();
    while block.exists() {
        if start.elapsed() > timeout {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

fn eject(device: &Path) -> io::Result<()> {
    // Never made by us: what is not there any more is no file to create.
    fs::File::options().write(true).open(device.join("delete"))?.write_all(b"1")
}

/// The root disk, which may still be on its way when the agent looks for it.
pub fn find_at_boot(serial: &str, timeout: Duration) -> Result<PathBuf, DiskError> {
    wait_for(&DiskAddress::Serial(serial.to_owned()), timeout)
}

fn wait_for(address: &DiskAddress, timeout: Duration) -> Result<PathBuf, DiskError> {
    let start = Instant::now();
    if candidates(address).is_empty() {
        scan_controllers();
    }
    let mut pause = Duration::from_millis(1);
    loop {
        let found = candidates(address);
        match found.as_slice() {
            [block] => {
                let node = Path::new("/dev").join(block.file_name().unwrap_or_default());
                // The node can be a moment later than the folder.
                if node.exists() {
                    return Ok(node);
                }
            }
            [] => {}
            several => {
                let (address, count) = (address.clone(), several.len());
                return Err(DiskError::Ambiguous { address, count });
            }
        }
        if start.elapsed() > timeout {
            return Err(DiskError::Missing { address: address.clone(), timeout });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Disks that were there at power-on need one driver, which boots with the guest. Those on SCSI
/// controllers need two, which take long to load and are loaded for the first such disk.
fn load_drivers(mounter: &Mounter, address: &DiskAddress) {
    // Waits for the list of the boot, if that is still being loaded.
    mounter.load_module("virtio_blk");
    if candidates(address).is_empty() {
        mounter.load_module("virtio_scsi");
        mounter.load_module("sd_mod");
    }
}

/// Has the kernel look for disks that were there before the driver. Ours tells it not to look by
/// itself (`scsi_mod.scan=manual`): it would ask all 256 targets of a controller one by one, where
/// QEMU puts every disk on target 0. Disks plugged in later announce themselves.
fn scan_controllers() {
    for host in entries(Path::new("/sys/class/scsi_host")) {
        // A controller that does not scan has nothing to find; the wait ends that.
        let _ = fs::write(host.join("scan"), "0 0 -");
    }
}

/// The folders in `/sys/block` of all disks that answer to `address`.
fn candidates(address: &DiskAddress) -> Vec<PathBuf> {
    match address {
        DiskAddress::Serial(serial) => entries(Path::new("/sys/block"))
            .into_iter()
            .filter(|block| serial_of(block).is_some_and(|found| found == *serial))
            .collect(),
        DiskAddress::Pci(address) => pci::disks_of(address),
        DiskAddress::Lun { controller, lun } => {
            let Some(host) = scsi_host(*controller) else { return Vec::new() };
            let device = format!("/sys/bus/scsi/devices/{host}:0:0:{lun}/block");
            let blocks = entries(Path::new(&device)).into_iter();
            blocks
                .filter_map(|block| Some(Path::new("/sys/block").join(block.file_name()?)))
                .collect()
        }
    }
}

/// The number of the n-th virtio SCSI host. Hosts are numbered in the order of their slots.
fn scsi_host(controller: u32) -> Option<u32> {
    let mut hosts: Vec<u32> = entries(Path::new("/sys/class/scsi_host"))
        .into_iter()
        .filter(|host| {
            fs::read_to_string(host.join("proc_name"))
                .is_ok_and(|name| name.trim() == "virtio_scsi")
        })
        .filter_map(|host| host.file_name()?.to_str()?.strip_prefix("host")?.parse().ok())
        .collect();
    hosts.sort_unstable();
    hosts.get(usize::try_from(controller).ok()?).copied()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// A SCSI disk tells its serial in page 0x80 of its vital product data; a virtio disk in a file.
fn serial_of(block: &Path) -> Option<String> {
    if let Ok(page) = fs::read(block.join("device/vpd_pg80")) {
        return serial_from_page(&page);
    }
    let text = fs::read_to_string(block.join("serial")).ok()?;
    Some(text.trim_end_matches(['\0', '\n']).to_owned())
}

/// Page 0x80: four bytes of header, the last two the length, then the serial, perhaps padded.
fn serial_from_page(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_at_checked(4)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let text = std::str::from_utf8(rest.get(..length)?).ok()?;
    Some(text.trim_matches(|c: char| c == ' ' || c == '\0').to_owned())
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
    fn a_file_system_we_do_not_know_is_refused_before_waiting_for_the_disk() {
        let address = DiskAddress::Serial("none".to_owned());
        let error =
            attach(&Mounter::default(), &address, Path::new("/run/mounts/m0"), Some("ntfs"), true);
        assert!(matches!(error, Err(DiskError::Filesystem { .. })));
    }

    #[test]
    fn a_missing_disk_is_reported_by_name_after_the_time_out() {
        let error = find_at_boot("no-such-disk", Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("no-such-disk"), "{error}");
    }
}
