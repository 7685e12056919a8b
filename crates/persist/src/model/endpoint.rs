//! The eight kinds of network interface a sandbox can have.

use super::kinds::EndpointKind;
use super::network::{NetworkInterfacePair, TapInterface, TuntapInterface};
use serde::{Deserialize, Serialize};

/// A network interface of the sandbox: a kind, and the member that goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkEndpoint {
    /// Which of the members below is set.
    #[doc(alias = "Type")]
    #[serde(rename = "Type")]
    pub kind: EndpointKind,
    /// For `physical`. Left out when empty.
    #[doc(alias = "Physical")]
    #[serde(rename = "Physical", skip_serializing_if = "Option::is_none")]
    pub physical: Option<PhysicalEndpoint>,
    /// For `virtual`. Left out when empty.
    #[doc(alias = "Veth")]
    #[serde(rename = "Veth", skip_serializing_if = "Option::is_none")]
    pub veth: Option<VethEndpoint>,
    /// For `vhost-user`. Left out when empty.
    #[doc(alias = "VhostUser")]
    #[serde(rename = "VhostUser", skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<VhostUserEndpoint>,
    /// For `macvlan`. `Macvlan` from 2.4 on. Left out when empty.
    #[doc(alias = "BridgedMacvlan")]
    #[serde(rename = "BridgedMacvlan", skip_serializing_if = "Option::is_none")]
    pub bridged_macvlan: Option<BridgedMacvlanEndpoint>,
    /// For `macvtap`. Left out when empty.
    #[doc(alias = "Macvtap")]
    #[serde(rename = "Macvtap", skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<MacvtapEndpoint>,
    /// For `tap`. Left out when empty.
    #[doc(alias = "Tap")]
    #[serde(rename = "Tap", skip_serializing_if = "Option::is_none")]
    pub tap: Option<TapEndpoint>,
    /// For `ipvlan`. Left out when empty.
    #[doc(alias = "IPVlan")]
    #[serde(rename = "IPVlan", skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<IpVlanEndpoint>,
    /// For `tuntap`. Kata drops it when it loads. Kata writes it and never reads it back. Left out
    /// when empty.
    #[doc(alias = "Tuntap")]
    #[serde(rename = "Tuntap", skip_serializing_if = "Option::is_none")]
    pub tuntap: Option<TuntapEndpoint>,
}

/// A physical network function handed to the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PhysicalEndpoint {
    /// PCI address, as in `0000:3b:02.1`.
    #[doc(alias = "BDF")]
    #[serde(rename = "BDF")]
    pub bdf: String,
    /// The host driver it goes back to.
    #[doc(alias = "Driver")]
    #[serde(rename = "Driver")]
    pub driver: String,
    /// Vendor and device, as in `8086 154c`.
    #[doc(alias = "VendorDeviceID")]
    #[serde(rename = "VendorDeviceID")]
    pub vendor_device_id: String,
}

/// One end of a veth pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VethEndpoint {
    /// The pair.
    #[doc(alias = "NetPair")]
    #[serde(rename = "NetPair")]
    pub net_pair: NetworkInterfacePair,
}

/// A network interface served by a vhost-user process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VhostUserEndpoint {
    /// The name of the interface on the host.
    #[doc(alias = "IfaceName")]
    #[serde(rename = "IfaceName")]
    pub iface_name: String,
    /// Its PCI address, for information.
    #[doc(alias = "PCIAddr")]
    #[serde(rename = "PCIAddr")]
    pub pci_addr: String,
}

/// A macvlan interface behind a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgedMacvlanEndpoint {
    /// The pair.
    #[doc(alias = "NetPair")]
    #[serde(rename = "NetPair")]
    pub net_pair: NetworkInterfacePair,
}

/// A macvtap interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MacvtapEndpoint {
    /// Its PCI address, for information. Nothing else of a macvtap is saved.
    #[doc(alias = "PCIAddr")]
    #[serde(rename = "PCIAddr")]
    pub pci_addr: String,
}

/// A tap interface that was made for the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapEndpoint {
    /// The tap; here a member of its own on the wire.
    #[doc(alias = "TapInterface")]
    #[serde(rename = "TapInterface")]
    pub tap_interface: TapInterface,
}

/// An ipvlan interface.
#[doc(alias = "IPVlanEndpoint")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IpVlanEndpoint {
    /// The pair.
    #[doc(alias = "NetPair")]
    #[serde(rename = "NetPair")]
    pub net_pair: NetworkInterfacePair,
}

/// A tap that was there before the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuntapEndpoint {
    /// The tap. Kata writes it and never reads it back.
    #[doc(alias = "TuntapInterface")]
    #[serde(rename = "TuntapInterface")]
    pub tuntap_interface: TuntapInterface,
}
