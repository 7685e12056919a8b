//! What is in a namespace: devices, and what somebody gave them.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use crate::Result;
use crate::link::{Mac, mac_of, mtu_of};
use crate::netlink::ask;

/// A network device and all that concerns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number in the namespace.
    pub index: u32,
    /// What it is.
    pub kind: Kind,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Its addresses, without those of the link alone.
    pub addresses: Vec<IpNet>,
    /// The routes by it, without those its addresses bring about.
    pub routes: Vec<Route>,
    /// The neighbours somebody fixed.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// The PCI address of a device of hardware.
    pub pci_address: Option<String>,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One end of a pair.
    Veth,
    /// A device of its own on another's wire.
    Macvlan,
    /// The same, with a character device.
    Macvtap,
    /// Another device under other addresses.
    IpVlan,
    /// A tap or tun device.
    Tun,
    /// Hardware.
    Physical,
    /// Something else, by the kernel's name.
    Other(String),
}

/// A route by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By way of whom; none: on the link.
    pub gateway: Option<IpAddr>,
    /// The lower, the better; 0: none is said.
    pub metric: u32,
}

/// All devices of this thread's namespace but `lo`; one whose name ends in `eth0` comes first, as the
/// one whose default route counts.
///
/// # Errors
/// The kernel cannot be asked.
pub fn devices() -> Result<Vec<Device>> {
    let (links, addresses, routes, neighbours) =
        ask("list what is in the namespace", async |netlink| {
            let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
            let addresses: Vec<AddressMessage> =
                netlink.address().get().execute().try_collect().await?;
            let mut routes: Vec<RouteMessage> = Vec::new();
            for query in [RouteMessage::default(), six()] {
                routes.extend(netlink.route().get(query).execute().try_collect::<Vec<_>>().await?);
            }
            let neighbours: Vec<NeighbourMessage> =
                netlink.neighbours().get().execute().try_collect().await?;
            Ok((links, addresses, routes, neighbours))
        })?;
    let is_loopback = |link: &LinkMessage| link.header.flags.contains(LinkFlags::Loopback);
    let mut devices: Vec<Device> = links
        .iter()
        .filter(|link| !is_loopback(link))
        .map(|link| {
            let index = link.header.index;
            Device {
                name: name_of(link),
                index,
                kind: kind_of(link),
                mac: mac_of(link),
                mtu: mtu_of(link).unwrap_or(1500),
                addresses: addresses.iter().filter_map(|a| address(a, index)).collect(),
                routes: routes.iter().filter_map(|r| route(r, index)).collect(),
                neighbours: neighbours.iter().filter_map(|n| neighbour(n, index)).collect(),
                pci_address: pci_address_of(link),
            }
        })
        .collect();
    devices.sort_by_key(|device| !device.name.ends_with("eth0"));
    Ok(devices)
}

fn six() -> RouteMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = rtnetlink::packet_route::AddressFamily::Inet6;
    query
}

fn name_of(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn kind_of(link: &LinkMessage) -> Kind {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.into_iter().flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        None => Kind::Physical,
        Some(InfoKind::Veth) => Kind::Veth,
        Some(InfoKind::MacVlan) => Kind::Macvlan,
        Some(InfoKind::MacVtap) => Kind::Macvtap,
        Some(InfoKind::IpVlan) => Kind::IpVlan,
        Some(InfoKind::Tun) => Kind::Tun,
        Some(other) => Kind::Other(other.to_string()),
    }
}

/// Which a device of hardware has since Linux 5.14.
fn pci_address_of(link: &LinkMessage) -> Option<String> {
    let is_pci = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::ParentDevBusName(bus) if bus == "pci"));
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ParentDevName(name) if is_pci => Some(name.clone()),
        _ => None,
    })
}

fn address(message: &AddressMessage, index: u32) -> Option<IpNet> {
    let header = &message.header;
    if header.index != index || header.scope == AddressScope::Link {
        return None;
    }
    // Of a point-to-point link, the local one.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let ip = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    });
    IpNet::new(ip?, header.prefix_len).ok()
}

fn route(message: &RouteMessage, index: u32) -> Option<Route> {
    let (mut by, mut gateway, mut metric, mut to, mut table) =
        (None, None, 0, None, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => by = Some(*oif),
            RouteAttribute::Gateway(ip) => gateway = ip_of(ip),
            RouteAttribute::Destination(ip) => to = ip_of(ip),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let header = &message.header;
    let is_own = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    if by != Some(index) || header.kind != RouteType::Unicast || table != main || is_own {
        return None;
    }
    let any: IpAddr = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => IpAddr::from([0; 4]),
    };
    let destination = IpNet::new(to.unwrap_or(any), header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway, metric })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, index: u32) -> Option<(IpAddr, Mac)> {
    let header = &message.header;
    if header.ifindex != index || header.state != NeighbourState::Permanent {
        return None;
    }
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = Mac::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    ip.zip(mac)
}
