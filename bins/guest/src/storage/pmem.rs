//! Persistent-memory devices: read-only images in the guest's address space.
//!
//! Few VMs have one, so their drivers are loaded when the first is looked for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter};

/// The device as QEMU offers it, and the disk on it.
const DRIVERS: [&str; 2] = ["virtio_pmem", "nd_pmem"];

/// Why a device could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It did not appear.
    #[error("/dev/pmem{number} did not appear within {} s", timeout.as_secs())]
    Missing {
        /// Its number.
        number: u32,
        /// How long we waited.
        timeout: Duration,
    },
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Mounts `/dev/pmem<number>` read-only on `target` (mode 0700).
pub fn attach(
    mounter: &Mounter,
    number: u32,
    target: &Path,
    timeout: Duration,
) -> Result<(), PmemError> {
    let from = &find(mounter, number, timeout)?;
    let flags = MsFlags::MS_RDONLY;
    let ext4 = Mount { from, target, kind: "ext4", flags, data: "noload", mode: 0o700 };
    match mounter.mount(&ext4) {
        // The protocol has no word for the file system, and our images are erofs.
        Err(MountError::Mount { source: Errno::EINVAL, .. }) => {
            mounter.mount(&Mount { kind: "erofs", data: "", ..ext4 })?;
        }
        other => other?,
    }
    Ok(())
}

/// The device's node, once it is there.
pub fn find(mounter: &Mounter, number: u32, timeout: Duration) -> Result<PathBuf, PmemError> {
    let node = PathBuf::from(format!("/dev/pmem{number}"));
    if !node.exists() {
        DRIVERS.into_iter().for_each(|driver| {
            mounter.load_module(driver);
        });
    }
    let start = Instant::now();
    while !node.exists() {
        if start.elapsed() > timeout {
            return Err(PmemError::Missing { number, timeout });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(node)
}
