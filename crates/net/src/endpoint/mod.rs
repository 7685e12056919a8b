//! The eight kinds of endpoint a sandbox can have (seed `persistapi`), and how each becomes a card.
//!
//! ```text
//!   veth, macvlan, ipvlan   a tap beside it, and both mirrored; or a macvtap on top of it
//!   macvtap, tap, tuntap    opened as it is
//!   vhost-user              its server is found, and dialled by QEMU
//!   physical                handed over whole, by its PCI address
//! ```
//!
//! An [`Endpoint`] is plain data, from which it can be saved and found again; what it holds while the VM
//! runs, a descriptor, is beside it in [`Attached`].

mod attach;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::discover::{Device, Kind};
use crate::{NetError, Result};

pub use attach::{Attached, Carrier, attach, detach};

/// How an interface that somebody made and the VM's are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interworking {
    /// Everything that comes in on one goes out on the other.
    #[default]
    TcMirror,
    /// A macvtap on top of it, which takes its hardware address over.
    Macvtap,
    /// Not at all: the VM has nothing of it.
    None,
}

/// An interface: its name, hardware address, addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, with colons.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

/// An interface somebody made, and the one that carries it into the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// What the sandbox is to have.
    pub seen: Interface,
    /// What carries it: a tap, or a macvtap.
    pub carrier: String,
    /// How both are joined.
    pub model: Interworking,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// One end of a pair of devices, whose other end is elsewhere.
    Veth(Pair),
    /// A macvlan device.
    BridgedMacvlan(Pair),
    /// An ipvlan device.
    IpVlan(Pair),
    /// A macvtap device.
    Macvtap(Interface),
    /// A tap that was made for the VM.
    Tap(Interface),
    /// A tap that was there before.
    Tuntap(Interface),
    /// A device of hardware.
    Physical {
        /// What the host called it.
        interface: Interface,
        /// Its PCI address.
        bdf: String,
    },
    /// What another process serves.
    VhostUser {
        /// As the sandbox is to have it.
        interface: Interface,
        /// The server's socket.
        socket: String,
    },
}

impl Endpoint {
    /// What the device in a namespace is, as an endpoint. `tag` makes the names of what we add to it.
    ///
    /// # Errors
    /// It is of no kind that a VM can have.
    pub fn of(device: &Device, model: Interworking, tag: &str) -> Result<Self> {
        let interface = Interface {
            name: device.name.clone(),
            mac: device.mac.as_ref().map(crate::link::mac_text).unwrap_or_default(),
            addresses: device.addresses.clone(),
        };
        let pair = |seen| Pair { seen, carrier: format!("{tag}{}", device.index), model };
        Ok(match &device.kind {
            Kind::Veth => Self::Veth(pair(interface)),
            Kind::Macvlan => Self::BridgedMacvlan(pair(interface)),
            Kind::IpVlan => Self::IpVlan(pair(interface)),
            Kind::Macvtap => Self::Macvtap(interface),
            Kind::Tun => Self::Tuntap(interface),
            Kind::Physical => {
                let bdf = device.pci_address.clone().ok_or_else(|| NetError::Device {
                    name: device.name.clone(),
                    why: "it is no PCI device, which is all that can be handed over".to_owned(),
                })?;
                Self::Physical { interface, bdf }
            }
            Kind::Other(kind) => {
                return Err(NetError::Device {
                    name: device.name.clone(),
                    why: format!("a {kind} device cannot be given to a VM"),
                });
            }
        })
    }

    /// The interface as the sandbox sees it.
    pub fn interface(&self) -> &Interface {
        match self {
            Self::Veth(pair) | Self::BridgedMacvlan(pair) | Self::IpVlan(pair) => &pair.seen,
            Self::Macvtap(interface)
            | Self::Tap(interface)
            | Self::Tuntap(interface)
            | Self::Physical { interface, .. }
            | Self::VhostUser { interface, .. } => interface,
        }
    }
}
