//! The network of a sandbox.

use super::address::Addr;
use super::endpoint::NetworkEndpoint;
use super::kinds::InterworkingModel;
use serde::{Deserialize, Serialize};

/// The network of a running sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkInfo {
    /// Path of the network namespace of the sandbox.
    #[doc(alias = "NetNsPath")]
    #[serde(rename = "NetNsPath")]
    pub net_ns_path: String,
    /// Process id of the network monitor. Gone in Kata 2.4. Of a helper process that Kata 2 no
    /// longer has.
    #[doc(alias = "NetmonPID")]
    #[serde(rename = "NetmonPID")]
    pub netmon_pid: i64,
    /// The runtime made the namespace and removes it.
    #[doc(alias = "NetNsCreated")]
    #[serde(rename = "NetNsCreated")]
    pub net_ns_created: bool,
    /// The interfaces. `None` is written as `null`.
    #[doc(alias = "Endpoints")]
    #[serde(rename = "Endpoints")]
    pub endpoints: Option<Vec<NetworkEndpoint>>,
}

/// A network interface: name, MAC and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name.
    #[doc(alias = "Name")]
    #[serde(rename = "Name")]
    pub name: String,
    /// Its MAC address, as text.
    #[doc(alias = "HardAddr")]
    #[serde(rename = "HardAddr")]
    pub hard_addr: String,
    /// Its addresses. `None` is written as `null`.
    #[doc(alias = "Addrs")]
    #[serde(rename = "Addrs")]
    pub addrs: Option<Vec<Addr>>,
}

/// A tap and the bridge it hangs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapInterface {
    /// A UUID.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// The name of the bridge.
    #[doc(alias = "Name")]
    #[serde(rename = "Name")]
    pub name: String,
    /// The tap itself; its descriptors are not saved.
    #[doc(alias = "TAPIface")]
    #[serde(rename = "TAPIface")]
    pub tap_iface: NetworkInterface,
}

/// The tap of a [`TuntapEndpoint`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuntapInterface {
    /// The name of the interface. Kata writes it and never reads it back.
    #[doc(alias = "Name")]
    #[serde(rename = "Name")]
    pub name: String,
    /// The tap itself. Kata writes it and never reads it back.
    #[doc(alias = "TAPIface")]
    #[serde(rename = "TAPIface")]
    pub tap_iface: NetworkInterface,
}

/// The interface a container sees, and the tap that carries it into the VM.
///
/// On the wire the keys of the tap stand among those of the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatPair", into = "FlatPair")]
pub struct NetworkInterfacePair {
    /// The tap.
    #[doc(alias = "TapInterface")]
    pub tap_interface: TapInterface,
    /// The interface the container sees.
    #[doc(alias = "VirtIface")]
    pub virt_iface: NetworkInterface,
    /// How both are joined.
    #[doc(alias = "NetInterworkingModel")]
    pub net_interworking_model: InterworkingModel,
}

/// A [`NetworkInterfacePair`] as it is written.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FlatPair {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "TAPIface")]
    tap_iface: NetworkInterface,
    #[serde(rename = "VirtIface")]
    virt_iface: NetworkInterface,
    #[serde(rename = "NetInterworkingModel")]
    net_interworking_model: InterworkingModel,
}

impl From<FlatPair> for NetworkInterfacePair {
    fn from(flat: FlatPair) -> Self {
        let FlatPair { id, name, tap_iface, virt_iface, net_interworking_model } = flat;
        let tap_interface = TapInterface { id, name, tap_iface };
        NetworkInterfacePair { tap_interface, virt_iface, net_interworking_model }
    }
}

impl From<NetworkInterfacePair> for FlatPair {
    fn from(pair: NetworkInterfacePair) -> Self {
        let NetworkInterfacePair { tap_interface, virt_iface, net_interworking_model } = pair;
        let TapInterface { id, name, tap_iface } = tap_interface;
        FlatPair { id, name, tap_iface, virt_iface, net_interworking_model }
    }
}
