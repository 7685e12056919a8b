//! The running VMM.

use super::keys::{Present, TextKey};
use super::kinds::{BridgeKind, HypervisorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The running VMM and what was plugged into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HypervisorState {
    /// Process id of the VMM. Kata reads it back for all but QEMU.
    #[doc(alias = "Pid")]
    #[serde(rename = "Pid")]
    pub pid: i64,
    /// Which VMM. Kata goes by
    /// [`SandboxConfig::hypervisor_type`](super::SandboxConfig::hypervisor_type). Kata writes it
    /// and never reads it back.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: HypervisorKind,
    /// The block indices in use. `None` is written as `null`.
    #[doc(alias = "BlockIndexMap")]
    #[serde(rename = "BlockIndexMap")]
    pub block_index_map: Option<BTreeMap<TextKey<i64>, Present>>,
    /// UUID of the VM, for QEMU and ACRN.
    #[doc(alias = "UUID")]
    #[serde(rename = "UUID")]
    pub uuid: String,
    /// Buses for hot-plug; QEMU. `None` is written as `null`.
    #[doc(alias = "Bridges")]
    #[serde(rename = "Bridges")]
    pub bridges: Option<Vec<Bridge>>,
    /// Virtual CPUs added since the boot; QEMU. `None` is written as `null`.
    #[doc(alias = "HotpluggedVCPUs")]
    #[serde(rename = "HotpluggedVCPUs")]
    pub hotplugged_vcpus: Option<Vec<CpuDevice>>,
    /// Memory added since the boot, in MiB; QEMU.
    #[doc(alias = "HotpluggedMemory")]
    #[serde(rename = "HotpluggedMemory")]
    pub hotplugged_memory: i64,
    /// Process id of virtiofsd. `VirtiofsDaemonPid` from 2.4 on.
    #[doc(alias = "VirtiofsdPid")]
    #[serde(rename = "VirtiofsdPid")]
    pub virtiofsd_pid: i64,
    /// VFIO devices are plugged into the root bus; QEMU.
    #[doc(alias = "HotplugVFIOOnRootBus")]
    #[serde(rename = "HotplugVFIOOnRootBus")]
    pub hotplug_vfio_on_root_bus: bool,
    /// Number of root ports; QEMU. The same in the configuration has 32 bits.
    #[doc(alias = "PCIeRootPort")]
    #[serde(rename = "PCIeRootPort")]
    pub pcie_root_port: i64,
    /// The REST socket of Cloud Hypervisor.
    #[doc(alias = "APISocket")]
    #[serde(rename = "APISocket")]
    pub api_socket: String,
}

/// A bus devices are plugged into while the VM runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bridge {
    /// Which device is in which slot; QEMU. `None` is written as `null`.
    #[doc(alias = "DeviceAddr")]
    #[serde(rename = "DeviceAddr")]
    pub device_addr: Option<BTreeMap<TextKey<u32>, String>>,
    /// Which bus.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: BridgeKind,
    /// The id of the bridge, such as `pci-bridge-0`.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// The slot of the bridge on the bus above it.
    #[doc(alias = "Addr")]
    #[serde(rename = "Addr")]
    pub addr: i64,
}

/// A virtual CPU that was added while the VM ran.
#[doc(alias = "CPUDevice")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuDevice {
    /// Its id in QEMU.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
}
