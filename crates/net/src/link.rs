//! Devices of the namespace the caller's thread is in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::netlink::{ask, errno, errno_of};
use crate::{NetError, Result};

/// The one device every host has.
const LOOPBACK: &str = "lo";

/// No such device.
const ENODEV: i32 = 19;
/// It is there already.
const EEXIST: i32 = 17;
/// The kernel knows no such kind of device.
const EOPNOTSUPP: i32 = 95;

/// A hardware address.
pub type Mac = [u8; 6];

/// A hardware address as text, with colons.
pub fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads a hardware address, with colons or dashes.
///
/// # Errors
/// It is none.
pub fn parse_mac(text: &str) -> Result<Mac> {
    let part = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(part).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| NetError::Text {
        what: "hardware address",
        text: text.to_owned(),
        why: "write six bytes in hexadecimal, as in 02:00:00:00:00:01".to_owned(),
    })
}

/// The number of a device, if it is there.
///
/// # Errors
/// The kernel cannot be asked.
pub fn index_of(name: &str) -> Result<Option<u32>> {
    Ok(find(name)?.map(|link| link.header.index))
}

/// The number of a device that must be there.
pub(crate) fn index(name: &str) -> Result<u32> {
    index_of(name)?.ok_or_else(|| NetError::NoDevice { name: name.to_owned() })
}

/// A device, if it is there.
pub(crate) fn find(name: &str) -> Result<Option<LinkMessage>> {
    ask(&format!("look for {name}"), async |netlink| {
        match netlink.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(Some(link)) => Ok(Some(link)),
            // The kernel answers one way or the other: no answer is none.
            Ok(None) => Err(rtnetlink::Error::RequestFailed),
            Err(error) if errno(&error) == Some(ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    })
}

/// Its hardware address.
pub(crate) fn mac_of(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Mac::try_from(address.as_slice()).ok(),
        _ => None,
    })
}

/// Its largest packet in bytes.
pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Brings a device up.
///
/// # Errors
/// There is no such device.
pub fn up(name: &str) -> Result<()> {
    let index = index(name)?;
    set(&format!("bring {name} up"), async |netlink| {
        netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    })
}

/// Takes a device down: nothing goes in or out. There being none is success.
///
/// # Errors
/// The kernel refuses.
pub fn down(name: &str) -> Result<()> {
    let Some(index) = index_of(name)? else { return Ok(()) };
    or_gone(set(&format!("take {name} down"), async |netlink| {
        netlink.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await
    }))
}

/// Deletes a device. There being none is success.
///
/// # Errors
/// The kernel refuses.
pub fn delete(name: &str) -> Result<()> {
    let Some(index) = index_of(name)? else { return Ok(()) };
    or_gone(set(&format!("delete {name}"), async |netlink| {
        netlink.link().del(index).execute().await
    }))
}

/// A device that went in between is as good as one that was not there.
fn or_gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if errno_of(&error) == Some(ENODEV) => Ok(()),
        other => other,
    }
}

/// Makes these addresses this host's own, and the subnets ones of which nothing but what is routed
/// elsewhere can be reached: what is sent to nobody must not leave by the default route. Doing it again
/// does no harm.
///
/// # Errors
/// The kernel refuses.
pub fn hold(addresses: &[IpAddr], subnets: &[IpNet]) -> Result<()> {
    let index = index(LOOPBACK)?;
    for ip in addresses {
        add_address(LOOPBACK, index, IpNet::from(*ip))?;
    }
    for subnet in subnets {
        let added = set(&format!("make the rest of {subnet} unreachable"), async |netlink| {
            netlink.route().add(unreachable(subnet)?).execute().await
        });
        ignoring(added, EEXIST)?;
    }
    Ok(())
}

/// Undoes [`hold`]. Doing it again does no harm.
///
/// # Errors
/// The kernel refuses.
pub fn let_go(addresses: &[IpAddr], subnets: &[IpNet]) -> Result<()> {
    /// ESRCH.
    const NO_ROUTE: i32 = 3;
    let index = index(LOOPBACK)?;
    for subnet in subnets {
        let removed = set(&format!("take away the route to {subnet}"), async |netlink| {
            netlink.route().del(unreachable(subnet)?).execute().await
        });
        ignoring(removed, NO_ROUTE)?;
    }
    addresses.iter().try_for_each(|ip| remove_address(LOOPBACK, index, IpNet::from(*ip)))
}

fn unreachable(subnet: &IpNet) -> Result<RouteMessage, rtnetlink::Error> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(subnet.addr(), subnet.prefix_len())
        .map_err(|_| rtnetlink::Error::RequestFailed)?;
    Ok(route.kind(RouteType::Unreachable).build())
}

fn ignoring(outcome: Result<()>, errno: i32) -> Result<()> {
    match outcome {
        Err(error) if errno_of(&error) == Some(errno) => Ok(()),
        other => other,
    }
}

/// Gives a device an address; it having it already is success.
pub(crate) fn add_address(name: &str, index: u32, address: IpNet) -> Result<()> {
    use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
    let added = set(&format!("give {name} the address {address}"), async |netlink| {
        let mut add = netlink.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // Usable at once: nobody else can have it on a device of our own.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            add.message_mut().attributes.push(flags);
        }
        add.execute().await
    });
    match added {
        Err(error) if errno_of(&error) == Some(EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes an address from a device; it not having it is success.
pub(crate) fn remove_address(name: &str, index: u32, address: IpNet) -> Result<()> {
    /// EADDRNOTAVAIL.
    const NOT_THERE: i32 = 99;
    let removed = set(&format!("take the address {address} from {name}"), async |netlink| {
        use rtnetlink::AddressMessageBuilder;
        let length = address.prefix_len();
        let message = match address.addr() {
            IpAddr::V4(ip) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(ip, length).build()
            }
            IpAddr::V6(ip) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(ip, length).build()
            }
        };
        netlink.address().del(message).execute().await
    });
    match removed {
        Err(error) if errno_of(&error) == Some(NOT_THERE) => Ok(()),
        other => other,
    }
}

/// Makes a device the wire between this host and one sandbox: the host has `own` at its end of it,
/// and finds `theirs` at the other.
///
/// # Errors
/// It is not there; the kernel refuses.
pub fn wire(name: &str, own: &[IpAddr], theirs: &[IpAddr], mtu: u32) -> Result<()> {
    let index = index(name)?;
    set(&format!("bring {name} up"), async |netlink| {
        netlink.link().set(LinkUnspec::new_with_index(index).mtu(mtu).up().build()).execute().await
    })?;
    for ip in own {
        add_address(name, index, IpNet::from(*ip))?;
    }
    theirs.iter().try_for_each(|ip| add_route(name, index, IpNet::from(*ip)))
}

/// Has packets for an address go to a device.
fn add_route(name: &str, index: u32, to: IpNet) -> Result<()> {
    let added = set(&format!("route {to} to {name}"), async |netlink| {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.addr(), to.prefix_len())
            .map_err(|_| rtnetlink::Error::RequestFailed)?
            .output_interface(index)
            .build();
        netlink.route().add(route).execute().await
    });
    match added {
        Err(error) if errno_of(&error) == Some(EEXIST) => Ok(()),
        other => other,
    }
}

/// What a device has carried.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
pub struct Traffic {
    /// Bytes in.
    pub rx_bytes: u64,
    /// Packets in.
    pub rx_packets: u64,
    /// Packets in that were dropped.
    pub rx_dropped: u64,
    /// Bytes out.
    pub tx_bytes: u64,
    /// Packets out.
    pub tx_packets: u64,
    /// Packets out that were dropped.
    pub tx_dropped: u64,
}

/// What a device has carried so far, as the device sees it.
///
/// # Errors
/// There is no such device.
pub fn traffic(name: &str) -> Result<Traffic> {
    let link = find(name)?.ok_or_else(|| NetError::NoDevice { name: name.to_owned() })?;
    let stats = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(*stats),
        _ => None,
    });
    let stats = stats.unwrap_or_default();
    Ok(Traffic {
        rx_bytes: stats.rx_bytes,
        rx_packets: stats.rx_packets,
        rx_dropped: stats.rx_dropped,
        tx_bytes: stats.tx_bytes,
        tx_packets: stats.tx_packets,
        tx_dropped: stats.tx_dropped,
    })
}

/// The networks this host has routes to, beside the default ones: an address in one of them is not
/// free.
///
/// # Errors
/// The kernel cannot be asked.
pub fn routed_networks() -> Result<Vec<IpNet>> {
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
    let all = ask("list the routes", async |netlink| {
        let mut routes: Vec<RouteMessage> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessageBuilder::<IpAddr>::new().build();
            query.header.address_family = family;
            routes.extend(netlink.route().get(query).execute().try_collect::<Vec<_>>().await?);
        }
        Ok(routes)
    })?;
    let net = |route: &RouteMessage| {
        let length = route.header.destination_prefix_length;
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
        to.and_then(|ip| IpNet::new(ip, length).ok())
    };
    Ok(all.iter().filter_map(net).filter(|net| net.prefix_len() > 0).collect())
}

/// A change that answers nothing.
pub(crate) fn set<W>(what: &str, work: impl FnOnce(Handle) -> W + Send) -> Result<()>
where
    W: Future<Output = Result<(), rtnetlink::Error>>,
{
    ask(what, work)
}

/// Says by name what the kernel lacks.
pub(crate) fn unsupported(error: NetError, kind: &'static str, option: &'static str) -> NetError {
    if errno_of(&error) == Some(EOPNOTSUPP) {
        return NetError::Unsupported { kind, option };
    }
    error
}
