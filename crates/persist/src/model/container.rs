//! A container while it exists.

use super::kinds::StateText;
use super::mode::FileMode;
use super::time::Time;
use serde::{Deserialize, Serialize};

/// A container while it exists: what `<cid>/persist.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerState {
    /// What the container is doing.
    #[doc(alias = "State")]
    #[serde(rename = "State")]
    pub state: StateText,
    /// Where the root file system comes from.
    #[doc(alias = "Rootfs")]
    #[serde(rename = "Rootfs")]
    pub rootfs: RootfsState,
    /// The cgroup of the container on the host.
    #[doc(alias = "CgroupPath")]
    #[serde(rename = "CgroupPath")]
    pub cgroup_path: String,
    /// Devices of the sandbox that the container sees. `None` is written as `null`.
    #[doc(alias = "DeviceMaps")]
    #[serde(rename = "DeviceMaps")]
    pub device_maps: Option<Vec<DeviceMap>>,
    /// Mounts of the container. `None` is written as `null`.
    #[doc(alias = "Mounts")]
    #[serde(rename = "Mounts")]
    pub mounts: Option<Vec<Mount>>,
    /// The host process that stands for the container.
    #[doc(alias = "Process")]
    #[serde(rename = "Process")]
    pub process: Process,
    /// Path of the OCI bundle. Kata 1.12 leaves it at zero.
    #[doc(alias = "BundlePath")]
    #[serde(rename = "BundlePath")]
    pub bundle_path: String,
}

/// Where a container's root file system comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RootfsState {
    /// The device the root file system is on, when it is on one.
    #[doc(alias = "BlockDeviceID")]
    #[serde(rename = "BlockDeviceID")]
    pub block_device_id: String,
    /// The type of that file system.
    #[doc(alias = "FsType")]
    #[serde(rename = "FsType")]
    pub fs_type: String,
}

/// How a device of the sandbox appears in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceMap {
    /// Which device: the [`id`](super::DeviceState::id) of a [`DeviceState`](super::DeviceState).
    /// Kata does not check that there is one.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// Path inside the container.
    #[doc(alias = "ContainerPath")]
    #[serde(rename = "ContainerPath")]
    pub container_path: String,
    /// Mode and type of the device node.
    #[doc(alias = "FileMode")]
    #[serde(rename = "FileMode")]
    pub file_mode: FileMode,
    /// Owner in the container.
    #[doc(alias = "UID")]
    #[serde(rename = "UID")]
    pub uid: u32,
    /// Group in the container.
    #[doc(alias = "GID")]
    #[serde(rename = "GID")]
    pub gid: u32,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mount {
    /// What is mounted: a path on the host, or a name.
    #[doc(alias = "Source")]
    #[serde(rename = "Source")]
    pub source: String,
    /// Where, as the container sees it.
    #[doc(alias = "Destination")]
    #[serde(rename = "Destination")]
    pub destination: String,
    /// The type of the file system. Kata 1.12 leaves it at zero.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: String,
    /// Mount options. `None` is written as `null`.
    #[doc(alias = "Options")]
    #[serde(rename = "Options")]
    pub options: Option<Vec<String>>,
    /// The path on the host at which a bind mount is to be undone.
    #[doc(alias = "HostPath")]
    #[serde(rename = "HostPath")]
    pub host_path: String,
    /// The mount is read-only.
    #[doc(alias = "ReadOnly")]
    #[serde(rename = "ReadOnly")]
    pub read_only: bool,
    /// The device behind the mount, when it is one.
    #[doc(alias = "BlockDeviceID")]
    #[serde(rename = "BlockDeviceID")]
    pub block_device_id: String,
}

/// The host process that stands for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// The name the agent gave the process.
    #[doc(alias = "Token")]
    #[serde(rename = "Token")]
    pub token: String,
    /// Process id, on the host, of the shim for this process.
    #[doc(alias = "Pid")]
    #[serde(rename = "Pid")]
    pub pid: i64,
    /// When it started. Kata stores UTC with nanoseconds.
    #[doc(alias = "StartTime")]
    #[serde(rename = "StartTime")]
    pub start_time: Time,
}
