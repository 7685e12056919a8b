//! Why a PCI device of the host cannot be assigned, or not be given back.

use std::io;
use std::path::PathBuf;

use coracle_vmm::PciAddress;

/// A PCI device could not be assigned or given back.
#[derive(Debug, thiserror::Error)]
pub enum VpciError {
    /// The path names no device.
    #[error("{path:?} names no device")]
    Path {
        /// The path.
        path: String,
    },
    /// One function is assigned at a time.
    #[error("a device is assigned by one function, not {count}")]
    Functions {
        /// How many there are.
        count: usize,
    },
    /// The device has no such virtual function.
    #[error("{parent} has no virtual function {number}")]
    NoVirtualFunction {
        /// The device.
        parent: PciAddress,
        /// The function, from 1.
        number: u16,
    },
    /// Only devices of the host's PCI bus have virtual functions.
    #[error("{device} has no virtual functions, and {number} was asked for")]
    NotVirtual {
        /// The device.
        device: String,
        /// The function, from 1.
        number: u16,
    },
    /// The host has no such device.
    #[error("this host has no PCI device {address}")]
    NoDevice {
        /// The address.
        address: PciAddress,
    },
    /// There is no mediated device at that path.
    #[error("{path} is no mediated device")]
    NotMediated {
        /// The path.
        path: PathBuf,
    },
    /// The device is in no IOMMU group: nothing would keep it from memory that is not the guest's.
    #[error("{device} is in no IOMMU group")]
    NoIommu {
        /// The device.
        device: String,
    },
    /// Devices of one group can reach each other's memory, so they go together.
    #[error("{address} shares IOMMU group {group} with {}", neighbours.join(", "))]
    SharedGroup {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The others, with the drivers that hold them.
        neighbours: Vec<String>,
    },
    /// The driver that hands devices to programs is not there.
    #[error("the driver vfio-pci is not loaded")]
    NoVfio,
    /// The kernel has no file for the device's group.
    #[error("there is no {path} for the group of {device}")]
    NoGroupFile {
        /// The file.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// vfio-pci did not take the device.
    #[error("vfio-pci did not take {address}")]
    NotTaken {
        /// The device.
        address: PciAddress,
    },
    /// A step in sysfs failed.
    #[error("{operation} {address}")]
    Step {
        /// "unbind the driver of".
        operation: &'static str,
        /// The device.
        address: PciAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server of a vhost-user device cannot be dialled.
    #[error("dial {socket}")]
    Server {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl VpciError {
    /// What a person can do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Path { .. } => {
                "give a PCI address (0000:3b:00.0), a mediated device's folder below /sys, \
                 vhost-user-blk:SOCKET, vhost-user-scsi:SOCKET, or emulated:edu"
            }
            Self::NoIommu { .. } => {
                "boot the host with an IOMMU: VT-d or AMD-Vi in the firmware, and intel_iommu=on \
                 in the kernel's arguments"
            }
            Self::SharedGroup { .. } => {
                "unbind the others from their drivers first, or bind them to vfio-pci as well"
            }
            Self::NoVfio => "modprobe vfio-pci",
            Self::NoDevice { .. } => "list the host's devices with `lspci -D`",
            Self::NoGroupFile { .. } => "modprobe vfio, and see that /dev is a devtmpfs",
            Self::Functions { .. }
            | Self::NoVirtualFunction { .. }
            | Self::NotVirtual { .. }
            | Self::NotMediated { .. }
            | Self::NotTaken { .. }
            | Self::Step { .. }
            | Self::Server { .. } => return None,
        };
        Some(text.to_owned())
    }
}
