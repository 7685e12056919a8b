//! Disks, found by the serial the host gave them.
//!
//! The order in which the kernel finds disks means nothing; the serial is the one name both sides know,
//! and tells a disk from the one that had its place before. A disk appears some time after the host
//! plugged it in, long after on a busy machine, so looking for it means waiting for it. For a host that
//! gives no serial, there is hcsshim's address: controller and LUN.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter, unmount};
use super::node;
use super::scsi::{self, Unit};
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
    /// Its serial, wherever it is.
    Serial(String),
    /// Its place on a SCSI controller.
    Scsi {
        /// Which place.
        unit: Unit,
        /// Its serial, from a host that gives one.
        serial: Option<String>,
    },
    /// The only disk behind a PCI device.
    Pci(String),
}

impl std::fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serial(serial) | Self::Scsi { serial: Some(serial), .. } => {
                write!(f, "with serial {serial:?}")
            }
            Self::Scsi { unit, serial: None } => write!(f, "{}:{}", unit.controller, unit.lun),
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
        match scsi::eject(&device) {
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

/// The root disk, which may still be on its way when the agent looks for it.
pub fn find_at_boot(serial: &str, timeout: Duration) -> Result<PathBuf, DiskError> {
    wait_for(&DiskAddress::Serial(serial.to_owned()), timeout)
}

fn wait_for(address: &DiskAddress, timeout: Duration) -> Result<PathBuf, DiskError> {
    let start = Instant::now();
    if candidates(address).is_empty() {
        search(address);
    }
    let mut pause = Duration::from_millis(1);
    loop {
        let found = candidates(address);
        match found.as_slice() {
            [block] => {
                let node = Path::new("/dev").join(block.file_name().unwrap_or_default());
                // The node, and the disk behind it, can be a moment later than the folder.
                if node::is_live(&node) {
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

fn search(address: &DiskAddress) {
    match address {
        DiskAddress::Scsi { unit, serial } => scsi::search(*unit, serial.as_deref()),
        DiskAddress::Serial(_) => scsi::search_everything(),
        DiskAddress::Pci(address) => scsi::search_behind(address),
    }
}

/// The folders in `/sys/block` of all disks that answer to `address`.
fn candidates(address: &DiskAddress) -> Vec<PathBuf> {
    match address {
        DiskAddress::Serial(serial) => scsi::entries(Path::new("/sys/block"))
            .into_iter()
            .filter(|block| serial_of(block).is_some_and(|found| found == *serial))
            .collect(),
        DiskAddress::Pci(address) => pci::disks_of(address),
        DiskAddress::Scsi { unit, serial } => scsi::blocks(*unit, serial.as_deref()),
    }
}

/// A SCSI disk tells its serial in its vital product data; a virtio disk in a file.
fn serial_of(block: &Path) -> Option<String> {
    if let Some(serial) = scsi::serial_of(&block.join("device")) {
        return Some(serial);
    }
    let text = fs::read_to_string(block.join("serial")).ok()?;
    Some(text.trim_end_matches(['\0', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
