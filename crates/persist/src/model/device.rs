//! Host devices in the sandbox.

use super::kinds::{DeviceKind, NodeKind, VfioKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A host device in the sandbox; containers share it by reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceState {
    /// The id of the device, in hexadecimal.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// Which driver serves it. Kata drops a device of a kind it does not know.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: DeviceKind,
    /// How many containers hold it.
    #[doc(alias = "RefCount")]
    #[serde(rename = "RefCount")]
    pub ref_count: u64,
    /// How many times it is attached to the VM.
    #[doc(alias = "AttachCount")]
    #[serde(rename = "AttachCount")]
    pub attach_count: u64,
    /// Character, unbuffered character, block or pipe.
    #[doc(alias = "DevType")]
    #[serde(rename = "DevType")]
    pub dev_type: NodeKind,
    /// Major number on the host.
    #[doc(alias = "Major")]
    #[serde(rename = "Major")]
    pub major: i64,
    /// Minor number on the host.
    #[doc(alias = "Minor")]
    #[serde(rename = "Minor")]
    pub minor: i64,
    /// It can only be plugged before the VM boots.
    #[doc(alias = "ColdPlug")]
    #[serde(rename = "ColdPlug")]
    pub cold_plug: bool,
    /// Options of the driver, such as `block-driver`. `None` is written as `null`.
    #[doc(alias = "DriverOptions")]
    #[serde(rename = "DriverOptions")]
    pub driver_options: Option<BTreeMap<String, String>>,
    /// For a block device. Left out when empty.
    #[doc(alias = "BlockDrive")]
    #[serde(rename = "BlockDrive", skip_serializing_if = "Option::is_none")]
    pub block_drive: Option<BlockDrive>,
    /// For VFIO: the devices of the group. Kata writes no null among them, but reads one. Left out
    /// when empty.
    #[doc(alias = "VFIODevs")]
    #[serde(rename = "VFIODevs", skip_serializing_if = "Vec::is_empty")]
    pub vfio_devs: Vec<Option<VfioDev>>,
    /// For vhost-user. Left out when empty.
    #[doc(alias = "VhostUserDev")]
    #[serde(rename = "VhostUserDev", skip_serializing_if = "Option::is_none")]
    pub vhost_user_dev: Option<VhostUserDeviceAttrs>,
}

/// A block device or image as the VMM sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockDrive {
    /// Host path of the image or device.
    #[doc(alias = "File")]
    #[serde(rename = "File")]
    pub file: String,
    /// Image format, normally raw.
    #[doc(alias = "Format")]
    #[serde(rename = "Format")]
    pub format: String,
    /// The id of the drive in the VMM.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// Index of the drive, and its LUN on SCSI; must be in
    /// [`block_index_map`](super::HypervisorState::block_index_map).
    #[doc(alias = "Index")]
    #[serde(rename = "Index")]
    pub index: i64,
    /// The slot on virtio-mmio.
    #[doc(alias = "MmioAddr")]
    #[serde(rename = "MmioAddr")]
    pub mmio_addr: String,
    /// Bridge and slot, two hexadecimal numbers as in `02/03`. From 1.13 on `PCIPath`.
    #[doc(alias = "PCIAddr")]
    #[serde(rename = "PCIAddr")]
    pub pci_addr: String,
    /// SCSI id and LUN, decimal, as in `0:1`.
    #[doc(alias = "SCSIAddr")]
    #[serde(rename = "SCSIAddr")]
    pub scsi_addr: String,
    /// The id of the nvdimm in the guest.
    #[doc(alias = "NvdimmID")]
    #[serde(rename = "NvdimmID")]
    pub nvdimm_id: String,
    /// The device in the guest, such as `/dev/vda`.
    #[doc(alias = "VirtPath")]
    #[serde(rename = "VirtPath")]
    pub virt_path: String,
    /// The CCW device number, on s390x.
    #[doc(alias = "DevNo")]
    #[serde(rename = "DevNo")]
    pub dev_no: String,
    /// The file backs an nvdimm.
    #[doc(alias = "Pmem")]
    #[serde(rename = "Pmem")]
    pub pmem: bool,
}

/// A PCI or mediated device handed through by VFIO.
#[doc(alias = "VFIODev")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VfioDev {
    /// The id of the device in the VMM.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// A whole function or a mediated device.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: VfioKind,
    /// PCI address, as in `02:10.0`.
    #[doc(alias = "BDF")]
    #[serde(rename = "BDF")]
    pub bdf: String,
    /// The mediated device in sysfs.
    #[doc(alias = "SysfsDev")]
    #[serde(rename = "SysfsDev")]
    pub sysfs_dev: String,
}

/// A device served by a vhost-user process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VhostUserDeviceAttrs {
    /// The id of the device in the VMM.
    #[doc(alias = "DevID")]
    #[serde(rename = "DevID")]
    pub dev_id: String,
    /// The socket of the process that serves it.
    #[doc(alias = "SocketPath")]
    #[serde(rename = "SocketPath")]
    pub socket_path: String,
    /// The kind, as in [`DeviceState::kind`].
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: DeviceKind,
    /// MAC address. The drivers for networks and SCSI save it, the one for blocks does not.
    #[doc(alias = "MacAddress")]
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    /// Bridge and slot. Only the driver for blocks saves it; from 1.13 on `PCIPath`.
    #[doc(alias = "PCIAddr")]
    #[serde(rename = "PCIAddr")]
    pub pci_addr: String,
    /// Index of the drive. Only the driver for blocks saves it.
    #[doc(alias = "Index")]
    #[serde(rename = "Index")]
    pub index: i64,
}
