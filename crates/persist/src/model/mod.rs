//! Every type and member of the persist API, with Go's zero as its default.
//!
//! Names are those of the API in Rust's case, with the original as a search alias; keys and their
//! order on the wire are the API's. Where Go tells a `nil` list or map from an empty one, so does an
//! `Option` here: `None` is written as `null`.

mod address;
mod cgroup;
mod config;
mod container;
mod device;
mod endpoint;
mod hypervisor;
mod hypervisor_config;
mod keys;
mod kinds;
mod mode;
mod network;
pub mod oci;
mod sandbox;
mod time;

pub use address::{Addr, Ip, IpMask, IpNet};
pub use cgroup::{
    Cgroup, CgroupDevice, CgroupResources, HugepageLimit, InterfacePriority, List, ThrottleDevice,
    WeightDevice,
};
pub use config::{
    ContainerConfig, KataAgentConfig, NetworkConfig, ProxyConfig, SandboxConfig, ShimConfig,
};
pub use container::{ContainerState, DeviceMap, Mount, Process, RootfsState};
pub use device::{BlockDrive, DeviceState, VfioDev, VhostUserDeviceAttrs};
pub use endpoint::{
    BridgedMacvlanEndpoint, IpVlanEndpoint, MacvtapEndpoint, NetworkEndpoint, PhysicalEndpoint,
    TapEndpoint, TuntapEndpoint, VethEndpoint, VhostUserEndpoint,
};
pub use hypervisor::{Bridge, CpuDevice, HypervisorState};
pub use hypervisor_config::HypervisorConfig;
pub use keys::{Present, TextKey};
pub use kinds::{
    AgentKind, BridgeKind, DeviceKind, EndpointKind, HypervisorKind, InterworkingModel, NodeKind,
    StateText, VfioKind,
};
pub use mode::FileMode;
pub use network::{
    NetworkInfo, NetworkInterface, NetworkInterfacePair, TapInterface, TuntapInterface,
};
pub use oci::LinuxResources;
pub use sandbox::{AgentState, SandboxState};
pub use time::{NoSuchYear, Time};

/// The version of the format, written into new sandboxes.
#[doc(alias = "CurPersistVersion")]
pub const CURRENT_PERSIST_VERSION: u64 = 2;
