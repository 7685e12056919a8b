//! One adapter, as the kernel is asked for it: found, moved, given what its plan says, moved back.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily as Family, SockFlag, SockType, socket};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::netlink::{Netlink, failed};
use super::plan::{Plan, Route};
use super::space::Device;
use super::{NetworkError, dhcp};

/// Before the kernel's own rules for the main table.
const RULE_PRIORITY: u32 = 5;

/// Made, unless it is there.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Names what was done when it failed.
fn step<T>(
    what: impl FnOnce() -> String,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, NetworkError> {
    work().map_err(|source| failed(what(), source))
}

/// Moves a device of this namespace into another, where it has this name. The kernel takes it down on
/// the way.
pub fn send(
    netlink: &mut Netlink,
    device: &Device,
    name: &str,
    to: RawFd,
) -> Result<(), NetworkError> {
    step(
        || format!("move {} into its namespace as {name}", device.name),
        || {
            let there = LinkUnspec::new_with_index(device.index).name(name.to_owned());
            netlink.change(Message::SetLink(there.setns_by_fd(to).build()), 0)
        },
    )
}

/// Gives the device, which is here by now, all that its plan says; asks for an address if it has none.
pub fn configure(
    netlink: &mut Netlink,
    plan: &mut Plan,
    patience: Duration,
) -> Result<(), NetworkError> {
    let name = plan.name.clone();
    let index = step(|| format!("bring {name} up"), || bring_up(netlink, plan))?;
    if plan.addresses.is_empty() {
        let asked = dhcp::ask(&name, plan.mac, patience);
        plan.take_lease(asked.map_err(|e| failed(format!("get an address for {name}"), e))?);
    }
    for address in &plan.addresses {
        let what = || format!("give {name} the address {address}");
        step(what, || netlink.change(Message::NewAddress(address_of(index, address)), NEW))?;
    }
    for route in &plan.routes {
        let what = || format!("route {} by {name}", route.destination);
        step(what, || add_route(netlink, index, route))?;
    }
    for (ip, mac) in &plan.neighbours {
        let what = || format!("make {ip} known as a neighbour by {name}");
        let there = NLM_F_CREATE | NLM_F_REPLACE;
        step(what, || netlink.change(Message::NewNeighbour(neighbour(index, *ip, mac)), there))?;
    }
    for (from, table) in &plan.rules {
        let what = || format!("route what comes from {from} by table {table}");
        step(what, || netlink.change(Message::NewRule(rule(*from, *table)), NEW))?;
    }
    Ok(())
}

/// Takes the addresses of a plan away from its device, and the routes by them, which stays where it is.
pub fn strip(netlink: &mut Netlink, plan: &Plan) -> Result<(), NetworkError> {
    forget_rules(netlink, plan)?;
    let is_ours = |attribute: &AddressAttribute| {
        matches!(attribute, AddressAttribute::Address(ip)
            if plan.addresses.iter().any(|net| net.addr() == *ip))
    };
    let strip = || {
        let index = if_nametoindex(plan.name.as_str())?;
        for found in netlink.list(Message::GetAddress(AddressMessage::default()))? {
            if let Message::NewAddress(address) = found
                && address.header.index == index
                && address.attributes.iter().any(is_ours)
            {
                netlink.change(Message::DelAddress(address), 0)?;
            }
        }
        Ok(())
    };
    step(|| format!("take the addresses of {} away", plan.name), strip)
}

/// Moves the device of a plan into another namespace, and forgets what its routes do not take along.
pub fn send_back(netlink: &mut Netlink, plan: &Plan, to: RawFd) -> Result<(), NetworkError> {
    forget_rules(netlink, plan)?;
    let send_back = || {
        let Some(link) = with_address(netlink, plan.mac)? else { return Ok(()) };
        let index = link.header.index;
        let down = LinkUnspec::new_with_index(index).down();
        netlink.change(Message::SetLink(down.build()), 0)?;
        // A name that nobody else has there: its own one may be taken.
        let out = LinkUnspec::new_with_index(index).name(format!("back{index}")).setns_by_fd(to);
        netlink.change(Message::SetLink(out.build()), 0)
    };
    step(|| format!("move {} out of its namespace", plan.name), send_back)
}

fn bring_up(netlink: &mut Netlink, plan: &Plan) -> io::Result<u32> {
    let index = if_nametoindex(plan.name.as_str())?;
    let mut up = LinkUnspec::new_with_index(index).up();
    if plan.mtu != 0 || plan.overhead != 0 {
        let mtu = if plan.mtu == 0 { mtu_of(&plan.name)? } else { plan.mtu };
        up = up.mtu(mtu.saturating_sub(plan.overhead));
    }
    netlink.change(Message::SetLink(up.build()), 0)?;
    Ok(index)
}

fn mtu_of(name: &str) -> io::Result<u32> {
    let any = socket(Family::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let name = std::ffi::CString::new(name)?;
    crate::sys::interface_mtu(any.as_fd(), &name)
}

/// By its address, since whoever has the container may have named it anew.
fn with_address(netlink: &mut Netlink, mac: [u8; 6]) -> io::Result<Option<LinkMessage>> {
    let is_it = |link: &LinkMessage| {
        let mut attributes = link.attributes.iter();
        attributes.any(|it| matches!(it, LinkAttribute::Address(address) if address[..] == mac))
    };
    let all = netlink.list(Message::GetLink(LinkMessage::default()))?;
    Ok(all.into_iter().find_map(|found| match found {
        Message::NewLink(link) if is_it(&link) => Some(link),
        _ => None,
    }))
}

fn address_of(index: u32, address: &IpNet) -> AddressMessage {
    let mut message = match address {
        IpNet::V4(net) => {
            let message = AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index);
            message.address(net.addr(), net.prefix_len()).build()
        }
        IpNet::V6(net) => {
            let message = AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index);
            message.address(net.addr(), net.prefix_len()).build()
        }
    };
    // Usable at once: that nobody else has it, the host has seen to.
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    message
}

fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> io::Result<()> {
    let (ip, length) = (route.destination.addr(), route.destination.prefix_len());
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(ip, length)
        .map_err(wrong)?
        .output_interface(index);
    if let Some(gateway) = route.gateway {
        message = message.gateway(gateway).map_err(wrong)?;
    }
    if route.on_link {
        message = message.onlink();
    }
    if route.metric > 0 {
        message = message.priority(route.metric);
    }
    if route.table > 0 {
        message = message.table_id(route.table);
    }
    netlink.change(Message::NewRoute(message.build()), NEW)
}

fn neighbour(index: u32, ip: IpAddr, mac: &[u8]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, address) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}

/// What comes from an address is routed by a table.
fn rule(from: IpAddr, table: u32) -> RuleMessage {
    let mut message =
        rules_of(if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 });
    message.header.src_len = if from.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(table),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Source(from),
    ];
    message
}

fn rules_of(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message
}

/// Takes away the rules of a plan, which go with no address and no device.
fn forget_rules(netlink: &mut Netlink, plan: &Plan) -> Result<(), NetworkError> {
    for table in plan.tables() {
        let what = || format!("take away the rules of table {table}");
        step(what, || remove_rules(netlink, table))?;
    }
    Ok(())
}

/// Takes away every rule that leads to a table.
fn remove_rules(netlink: &mut Netlink, table: u32) -> io::Result<()> {
    let leads_there = |rule: &RuleMessage| {
        let named = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Table(number) => Some(*number),
            _ => None,
        });
        named.unwrap_or(rule.header.table.into()) == table
    };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for found in netlink.list(Message::GetRule(rules_of(family)))? {
            if let Message::NewRule(rule) = found
                && leads_there(&rule)
            {
                netlink.change(Message::DelRule(rule), 0)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_mtu_is_asked_of_the_kernel_and_a_card_that_is_not_there_has_none() {
        let told = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        assert_eq!(mtu_of("lo").unwrap().to_string(), told.trim());
        assert_eq!(mtu_of("nowhere").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(mtu_of("far-too-long-a-name").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
