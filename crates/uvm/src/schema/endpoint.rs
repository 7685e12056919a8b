//! A network endpoint as the Windows host's network service (HNS) describes one.

use serde::{Deserialize, Serialize};

/// An endpoint: one network interface of a sandbox, as far as a guest has to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[doc(alias = "HNSEndpoint")]
pub struct HnsEndpoint {
    /// Its id, a GUID; compared without regard to case.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its hardware address: `00-15-5d-00-11-22` or with colons.
    pub mac_address: String,
    /// Its address; empty: the guest asks DHCP.
    #[serde(rename = "IPAddress", skip_serializing_if = "String::is_empty")]
    pub ip_address: String,
    /// Length of the network's prefix, in bits.
    pub prefix_length: u8,
    /// The default gateway; several, of different families, are separated by commas.
    pub gateway_address: String,
    /// Search domains, separated by commas.
    #[serde(rename = "DNSSuffix")]
    pub dns_suffix: String,
    /// Name servers, separated by commas.
    #[serde(rename = "DNSServerList")]
    pub dns_server_list: String,
    /// Its default route is only for what comes from its own address.
    pub enable_low_metric: bool,
    /// Bytes that an encapsulation on the host takes from the MTU.
    pub encap_overhead: u16,
    /// The namespace the host has it in, if it is in one.
    pub namespace: Option<HnsNamespace>,
}

/// A namespace as the host's network service names one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HnsNamespace {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
}
