//! What was asked for, as opposed to what is.

use super::cgroup::Cgroup;
use super::hypervisor_config::HypervisorConfig;
use super::kinds::{AgentKind, HypervisorKind, InterworkingModel};
use super::oci::LinuxResources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the sandbox was asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxConfig {
    /// Which VMM.
    #[doc(alias = "HypervisorType")]
    #[serde(rename = "HypervisorType")]
    pub hypervisor_type: HypervisorKind,
    /// Options of the VMM.
    #[doc(alias = "HypervisorConfig")]
    #[serde(rename = "HypervisorConfig")]
    pub hypervisor_config: HypervisorConfig,
    /// Which agent; with `kata` Kata requires `kata_agent_config`.
    #[doc(alias = "AgentType")]
    #[serde(rename = "AgentType")]
    pub agent_type: AgentKind,
    /// Options of the Kata agent; required with it. Left out when empty.
    #[doc(alias = "KataAgentConfig")]
    #[serde(rename = "KataAgentConfig", skip_serializing_if = "Option::is_none")]
    pub kata_agent_config: Option<KataAgentConfig>,
    /// Which proxy: noProxy, kataProxy, kataBuiltInProxy and others. Of a helper process that Kata
    /// 2 no longer has.
    #[doc(alias = "ProxyType")]
    #[serde(rename = "ProxyType")]
    pub proxy_type: String,
    /// Options of the proxy. Of a helper process that Kata 2 no longer has.
    #[doc(alias = "ProxyConfig")]
    #[serde(rename = "ProxyConfig")]
    pub proxy_config: ProxyConfig,
    /// Which shim: kataShim (needs `kata_shim_config`), kataBuiltInShim, noopShim. Of a helper
    /// process that Kata 2 no longer has.
    #[doc(alias = "ShimType")]
    #[serde(rename = "ShimType")]
    pub shim_type: String,
    /// Options of the shim. `None` is written as `null`. Of a helper process that Kata 2 no longer
    /// has.
    #[doc(alias = "KataShimConfig")]
    #[serde(rename = "KataShimConfig")]
    pub kata_shim_config: Option<ShimConfig>,
    /// Options of the network.
    #[doc(alias = "NetworkConfig")]
    #[serde(rename = "NetworkConfig")]
    pub network_config: NetworkConfig,
    /// Size of /dev/shm in the guest, in bytes.
    #[doc(alias = "ShmSize")]
    #[serde(rename = "ShmSize")]
    pub shm_size: u64,
    /// Containers share one pid namespace.
    #[doc(alias = "SharePidNs")]
    #[serde(rename = "SharePidNs")]
    pub share_pid_ns: bool,
    /// The sandbox stays in memory between calls, as in a containerd shim.
    #[doc(alias = "Stateful")]
    #[serde(rename = "Stateful")]
    pub stateful: bool,
    /// Cgroup paths have the form systemd wants.
    #[doc(alias = "SystemdCgroup")]
    #[serde(rename = "SystemdCgroup")]
    pub systemd_cgroup: bool,
    /// One cgroup on the host for the whole sandbox.
    #[doc(alias = "SandboxCgroupOnly")]
    #[serde(rename = "SandboxCgroupOnly")]
    pub sandbox_cgroup_only: bool,
    /// The agent has a pid namespace of its own. New in 1.12, in no other release.
    #[doc(alias = "EnableAgentPidNs")]
    #[serde(rename = "EnableAgentPidNs")]
    pub enable_agent_pid_ns: bool,
    /// No seccomp filters in the guest.
    #[doc(alias = "DisableGuestSeccomp")]
    #[serde(rename = "DisableGuestSeccomp")]
    pub disable_guest_seccomp: bool,
    /// Names of the experimental features that are on; Kata 1.12 crashes on a name it does not
    /// know. `None` is written as `null`.
    #[doc(alias = "Experimental")]
    #[serde(rename = "Experimental")]
    pub experimental: Option<Vec<String>>,
    /// The containers of the sandbox. `None` is written as `null`.
    #[doc(alias = "ContainerConfigs")]
    #[serde(rename = "ContainerConfigs")]
    pub container_configs: Option<Vec<ContainerConfig>>,
    /// The cgroup of the sandbox as runc configures it. `None` is written as `null`.
    #[doc(alias = "Cgroups")]
    #[serde(rename = "cgroups")]
    pub cgroups: Option<Cgroup>,
}

/// What a container was asked to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerConfig {
    /// The id of the container. Kata rebuilds the containers listed here when it fetches a sandbox.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// OCI annotations, among them the path of the bundle from which Kata reads the specification
    /// again. `None` is written as `null`.
    #[doc(alias = "Annotations")]
    #[serde(rename = "Annotations")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Path of the root file system; where it comes from is not saved.
    #[doc(alias = "RootFs")]
    #[serde(rename = "RootFs")]
    pub root_fs: String,
    /// Resource limits, kept for updates.
    #[doc(alias = "Resources")]
    #[serde(rename = "Resources")]
    pub resources: LinuxResources,
}

/// Which network the sandbox was asked to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Path of the network namespace. Here with a capital NS, unlike in
    /// [`NetworkInfo`](super::NetworkInfo).
    #[doc(alias = "NetNSPath")]
    #[serde(rename = "NetNSPath")]
    pub net_ns_path: String,
    /// The runtime made the namespace and must delete it.
    #[doc(alias = "NetNsCreated")]
    #[serde(rename = "NetNsCreated")]
    pub net_ns_created: bool,
    /// Use the given namespace or that of the host, make none.
    #[doc(alias = "DisableNewNetNs")]
    #[serde(rename = "DisableNewNetNs")]
    pub disable_new_net_ns: bool,
    /// How the interface of a container is joined to that of the VM.
    #[doc(alias = "InterworkingModel")]
    #[serde(rename = "InterworkingModel")]
    pub interworking_model: InterworkingModel,
}

/// Options of the Kata agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KataAgentConfig {
    /// The connection to the agent stays open.
    #[doc(alias = "LongLiveConn")]
    #[serde(rename = "LongLiveConn")]
    pub long_live_conn: bool,
    /// The agent is reached by vsock. Gone in Kata 2.0.
    #[doc(alias = "UseVSock")]
    #[serde(rename = "UseVSock")]
    pub use_vsock: bool,
}

/// Options of the proxy helper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// The program. Of a helper process that Kata 2 no longer has.
    #[doc(alias = "Path")]
    #[serde(rename = "Path")]
    pub path: String,
    /// Its debug output. Of a helper process that Kata 2 no longer has.
    #[doc(alias = "Debug")]
    #[serde(rename = "Debug")]
    pub debug: bool,
}

/// Options of the shim helper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShimConfig {
    /// The program. Of a helper process that Kata 2 no longer has.
    #[doc(alias = "Path")]
    #[serde(rename = "Path")]
    pub path: String,
    /// Its debug output. Of a helper process that Kata 2 no longer has.
    #[doc(alias = "Debug")]
    #[serde(rename = "Debug")]
    pub debug: bool,
}
