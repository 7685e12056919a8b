//! What can be plugged into a VM, at launch or later, and how it is named.

use std::{fmt, os::fd::OwnedFd, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{PciDevice, VmmError};

/// The name of a device within its VM, chosen by whoever plugs it in.
///
/// A letter, then letters, digits, `-` or `_`; at most 24 bytes, which leaves room for the
/// suffixes of what stands behind a device within QEMU's 31. Names with a dot are our own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

impl DeviceId {
    /// The longest id, in bytes.
    pub const MAX: usize = 24;

    /// Checks and makes an id.
    ///
    /// # Errors
    /// [`VmmError::DeviceId`] when the text breaks the rules above.
    pub fn new(id: impl Into<String>) -> Result<Self, VmmError> {
        let id = id.into();
        let lead = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
        let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !lead || !rest || id.len() > Self::MAX {
            return Err(VmmError::DeviceId { id });
        }
        Ok(Self(id))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DeviceId {
    type Err = VmmError;
    fn from_str(id: &str) -> Result<Self, VmmError> {
        Self::new(id)
    }
}

impl TryFrom<String> for DeviceId {
    type Error = VmmError;
    fn try_from(id: String) -> Result<Self, VmmError> {
        Self::new(id)
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.0
    }
}

/// Something to plug into a running VM.
#[derive(Debug)]
#[non_exhaustive]
pub enum Device {
    /// A SCSI disk.
    Disk(Disk),
    /// A network card.
    Nic(Nic),
    /// A byte channel.
    SerialPort(SerialPort),
    /// A file system another process serves.
    Share(Share),
    /// Persistent memory, which stays until the VM ends.
    Pmem(Pmem),
    /// A PCI device of the host's, or one another process serves.
    Pci(PciDevice),
}

impl Device {
    /// The id the device will have.
    pub fn id(&self) -> &DeviceId {
        match self {
            Device::Disk(disk) => &disk.id,
            Device::Nic(nic) => &nic.id,
            Device::SerialPort(port) => &port.id,
            Device::Share(share) => &share.id,
            Device::Pmem(pmem) => &pmem.id,
            Device::Pci(pci) => &pci.id,
        }
    }
}

/// A disk. The guest finds it by its serial number.
#[derive(Debug)]
pub struct Disk {
    /// Its name.
    pub id: DeviceId,
    /// The file or block device, open read-only for a read-only disk and read-write for any
    /// other: the monitor is given this very descriptor.
    pub file: OwnedFd,
    /// How the file is laid out.
    pub format: DiskFormat,
    /// Whether the guest may write.
    pub read_only: bool,
    /// What it hangs on.
    pub place: DiskPlace,
    /// The serial number the guest sees; printable ASCII, at most 36 bytes, 20 of a virtio disk.
    pub serial: String,
    /// What the host may keep of it in memory.
    pub cache: DiskCache,
}

/// What the host may keep in memory of a disk. The default is what a file has: its page cache, and
/// flushes that reach the medium.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskCache {
    /// Go past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Ignore the guest's flushes: a host that loses power loses what the guest held for written.
    pub no_flush: bool,
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskPlace {
    /// A SCSI controller. It tells the guest nothing of disks that come and go: whoever plugs one in has
    /// the guest look at its unit, and let go of it before it is unplugged.
    Scsi {
        /// Which one, from 0.
        controller: u32,
        /// Its logical unit number, 0 to 255.
        lun: u32,
    },
    /// The PCI bus itself. Only for disks that are there from launch: a guest has such a disk at once,
    /// where one on a SCSI controller costs it three drivers and a dozen questions.
    Virtio,
}

/// How a disk's file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's own sparse format, without a backing file.
    Qcow2,
    /// Microsoft's older format.
    Vhd,
    /// Microsoft's newer format.
    Vhdx,
}

/// A virtio-fs device. The VM's memory must be [`crate::MemoryBacking::Shared`]: its server reads and
/// writes there.
#[derive(Debug)]
pub struct Share {
    /// Its name.
    pub id: DeviceId,
    /// The tag by which the guest mounts it; 1 to 36 bytes.
    pub tag: String,
    /// A connection to its server (virtiofsd), which serves this one and ends with it.
    pub server: OwnedFd,
}

/// A persistent memory device. It cannot be unplugged: what is plugged in later needs
/// [`crate::VmConfig::hotplug_memory`] and stays until the VM ends.
#[derive(Debug)]
pub struct Pmem {
    /// Its name.
    pub id: DeviceId,
    /// The file behind it. Its inode must be readable (and writable, unless read-only) for the
    /// user of the VM, since memory cannot be mapped through a passed descriptor alone.
    pub file: OwnedFd,
    /// Size in bytes, a multiple of 4096.
    pub size: u64,
    /// Whether the guest may write.
    pub read_only: bool,
}

/// Memory of the host that the guest finds as a PCI device of nothing but memory (`ivshmem-plain`).
///
/// It is there where guest code is emulated and the path is on a tmpfs, ext4 or XFS with room for it, and else
/// the VM goes without: under KVM the guest's kernel would map it uncached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMemory {
    /// Where its file is made.
    pub path: PathBuf,
    /// Size in bytes, a power of two.
    pub bytes: u64,
}

/// A virtio network card.
#[derive(Debug)]
pub struct Nic {
    /// Its name.
    pub id: DeviceId,
    /// The address the guest sees, and finds it by.
    pub mac: MacAddress,
    /// What carries its packets.
    pub source: NicSource,
}

/// What carries the packets of a network card.
#[derive(Debug)]
pub enum NicSource {
    /// An opened tap or macvtap device, with `IFF_VNET_HDR`.
    Tap(OwnedFd),
    /// The socket on which a vhost-user-net server listens, opened with `O_PATH`: the monitor dials it.
    /// The VM's memory must be [`crate::MemoryBacking::Shared`].
    VhostUser(OwnedFd),
    /// A network the monitor makes up by itself, with sockets of its own: no right on the host is
    /// needed. The guest has 10.0.2.15 there, the host is 10.0.2.2, names are at 10.0.2.3.
    User(UserNetwork),
}

/// A network the monitor makes up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserNetwork {
    /// Ports of the host that lead to the guest, as QEMU writes them: `tcp:127.0.0.1:8080-:80`.
    pub forwards: Vec<String>,
    /// The guest may begin to talk to nobody.
    pub is_restricted: bool,
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A byte channel between host and guest, on a controller of its own.
#[derive(Debug, Clone)]
pub struct SerialPort {
    /// Its name as a device.
    pub id: DeviceId,
    /// The name under which the guest finds it, such as `coracle.control`.
    pub name: String,
    /// Where the monitor listens for the host's end; one client at a time.
    pub socket: PathBuf,
}
