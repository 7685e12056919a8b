//! The sandbox as a whole.

use super::config::SandboxConfig;
use super::device::DeviceState;
use super::hypervisor::HypervisorState;
use super::kinds::StateText;
use super::network::NetworkInfo;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A sandbox as a whole: what `persist.json` of its directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxState {
    /// Version of the format: [`CURRENT_PERSIST_VERSION`](super::CURRENT_PERSIST_VERSION) in a new
    /// sandbox, kept as it is in a restored one. No code of Kata branches on it.
    #[doc(alias = "PersistVersion")]
    #[serde(rename = "PersistVersion")]
    pub persist_version: u64,
    /// What the sandbox is doing.
    #[doc(alias = "State")]
    #[serde(rename = "State")]
    pub state: StateText,
    /// Size of a hot-plugged block of guest memory, in MiB.
    #[doc(alias = "GuestMemoryBlockSizeMB")]
    #[serde(rename = "GuestMemoryBlockSizeMB")]
    pub guest_memory_block_size_mb: u32,
    /// Guest kernel needs memory probe at hotplug.
    #[doc(alias = "GuestMemoryHotplugProbe")]
    #[serde(rename = "GuestMemoryHotplugProbe")]
    pub guest_memory_hotplug_probe: bool,
    /// The id of the sandbox, and so the name of its directory. Kata does not compare it when it
    /// loads; we do. Kata writes it and never reads it back.
    #[doc(alias = "SandboxContainer")]
    #[serde(rename = "SandboxContainer")]
    pub sandbox_container: String,
    /// The cgroup of the sandbox on the host. Kata 1.12 leaves it at zero.
    #[doc(alias = "CgroupPath")]
    #[serde(rename = "CgroupPath")]
    pub cgroup_path: String,
    /// Path of the sandbox in each cgroup v1 controller; only with the sandbox cgroup manager.
    /// `None` is written as `null`.
    #[doc(alias = "CgroupPaths")]
    #[serde(rename = "CgroupPaths")]
    pub cgroup_paths: Option<BTreeMap<String, String>>,
    /// Host devices in the sandbox. `None` is written as `null`.
    #[doc(alias = "Devices")]
    #[serde(rename = "Devices")]
    pub devices: Option<Vec<DeviceState>>,
    /// The running VMM.
    #[doc(alias = "HypervisorState")]
    #[serde(rename = "HypervisorState")]
    pub hypervisor_state: HypervisorState,
    /// How the agent is reached.
    #[doc(alias = "AgentState")]
    #[serde(rename = "AgentState")]
    pub agent_state: AgentState,
    /// The network as it is.
    #[doc(alias = "Network")]
    #[serde(rename = "Network")]
    pub network: NetworkInfo,
    /// What was asked for.
    #[doc(alias = "Config")]
    #[serde(rename = "Config")]
    pub config: SandboxConfig,
}

/// How the agent in the guest is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentState {
    /// Process id of the proxy; 0 for none, -1 after its stop. Of a helper process that Kata 2 no
    /// longer has.
    #[doc(alias = "ProxyPid")]
    #[serde(rename = "ProxyPid")]
    pub proxy_pid: i64,
    /// Where the agent listens: `vsock://CID:PORT`, `hvsock://...` or `unix:///...`.
    #[doc(alias = "URL")]
    #[serde(rename = "URL")]
    pub url: String,
}
