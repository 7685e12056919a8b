//! Persistent-memory devices: read-only images in the guest's address space.
//!
//! Few VMs have one, so their drivers are loaded when the first is looked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter};
use super::node;
use super::superblock::{self, SuperblockError};

/// The device as QEMU offers it, and the disk on it.
const DRIVERS: [&str; 2] = ["virtio_pmem", "nd_pmem"];

/// How the host names a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `/dev/pmem<n>`: good for those that were there at boot, in the host's order.
    Number(u32),
    /// Where its memory begins: good for all.
    Address(u64),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Address(address) => write!(f, "at address {address:#x}"),
        }
    }
}

/// Why a device could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It did not appear.
    #[error("the pmem device {which} did not appear within {} s", timeout.as_secs())]
    Missing {
        /// Which one.
        which: Which,
        /// How long we waited.
        timeout: Duration,
    },
    /// What is on it could not be told.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Mounts a device read-only on `target` (mode 0700). With `auto` the file system is told by what is
/// on the device, and its pages are mapped straight from the host where the file system can (DAX).
pub fn attach(
    mounter: &Mounter,
    which: Which,
    filesystem: Option<&str>,
    target: &Path,
    timeout: Duration,
) -> Result<(), PmemError> {
    let from = &find(mounter, which, timeout)?;
    let flags = MsFlags::MS_RDONLY;
    let kind = match filesystem {
        Some("auto") => superblock::kind_of(from)?,
        other => other.filter(|kind| !kind.is_empty()).unwrap_or("ext4"),
    };
    let (data, with_dax) = match kind {
        "ext4" => ("noload", "noload,dax=always"),
        "xfs" => ("norecovery,nouuid", "norecovery,nouuid,dax=always"),
        "erofs" => ("", "dax=always"),
        _ => ("", ""),
    };
    let plain = Mount { from, target, kind, flags, data, mode: 0o700 };
    if filesystem.is_some() && mounter.mount(&Mount { data: with_dax, ..plain.clone() }).is_ok() {
        return Ok(());
    }
    match mounter.mount(&plain) {
        // The protocol has no word for the file system, and our images are erofs.
        Err(MountError::Mount { source: Errno::EINVAL, .. }) if filesystem.is_none() => {
            mounter.mount(&Mount { kind: "erofs", data: "", ..plain })?;
        }
        other => other?,
    }
    Ok(())
}

/// The device's node, once it is there.
pub fn find(mounter: &Mounter, which: Which, timeout: Duration) -> Result<PathBuf, PmemError> {
    let mut node = node_of(which);
    if node.is_none() {
        DRIVERS.into_iter().for_each(|driver| {
            mounter.load_module(driver);
        });
        node = node_of(which);
    }
    let start = Instant::now();
    loop {
        if let Some(node) = node {
            return Ok(node);
        }
        if start.elapsed() > timeout {
            return Err(PmemError::Missing { which, timeout });
        }
        std::thread::sleep(Duration::from_millis(2));
        node = node_of(which);
    }
}

fn node_of(which: Which) -> Option<PathBuf> {
    let node = match which {
        Which::Number(number) => PathBuf::from(format!("/dev/pmem{number}")),
        Which::Address(address) => {
            let block = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
            let named = block.filter(|block| {
                let name = block.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with("pmem")
            });
            let found = named.into_iter().find(|block| begins_at(block) == Some(address))?;
            Path::new("/dev").join(found.file_name()?)
        }
    };
    node::is_live(&node).then_some(node)
}

/// Where the memory behind a pmem disk begins: its region says so.
fn begins_at(block: &Path) -> Option<u64> {
    let text = fs::read_to_string(block.join("device/resource")).ok()?;
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}
