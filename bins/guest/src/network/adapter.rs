//! One adapter, as the kernel is asked for it: found, moved, given what its plan says, moved back.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::netlink::{NetlinkError, failed};
use super::plan::{Plan, Route};
use super::space::Device;
use super::{NetworkError, dhcp};

/// Before the kernel's own rules for the main table.
const RULE_PRIORITY: u32 = 5;

/// Names what was done when it failed.
async fn step<T>(
    what: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, NetlinkError>>,
) -> Result<T, NetworkError> {
    work.await.map_err(|source| failed(what(), source))
}

/// Brings up the one device every namespace has.
pub async fn loopback_up(netlink: &Handle) -> Result<(), NetworkError> {
    step(|| "bring lo up".to_owned(), async {
        Ok(netlink.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await?)
    })
    .await
}

/// Moves a device of this namespace into another, where it has this name. The kernel takes it down on
/// the way.
pub async fn send(
    netlink: &Handle,
    device: &Device,
    name: &str,
    to: RawFd,
) -> Result<(), NetworkError> {
    step(|| format!("move {} into its namespace as {name}", device.name), async {
        let there = LinkUnspec::new_with_index(device.index).name(name.to_owned()).setns_by_fd(to);
        Ok(netlink.link().set(there.build()).execute().await?)
    })
    .await
}

/// Gives the device, which is here by now, all that its plan says; asks for an address if it has none.
pub async fn configure(
    netlink: &Handle,
    plan: &mut Plan,
    patience: Duration,
) -> Result<(), NetworkError> {
    let name = plan.name.clone();
    let index = step(|| format!("bring {name} up"), bring_up(netlink, plan)).await?;
    if plan.addresses.is_empty() {
        // On a thread that has nothing else to do.
        let asked = dhcp::ask(&name, plan.mac, patience);
        plan.take_lease(asked.map_err(|e| failed(format!("get an address for {name}"), e.into()))?);
    }
    for address in &plan.addresses {
        step(|| format!("give {name} the address {address}"), async {
            let mut add = netlink.address().add(index, address.addr(), address.prefix_len());
            // Usable at once: that nobody else has it, the host has seen to.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            add.message_mut().attributes.push(flags);
            Ok(add.execute().await?)
        })
        .await?;
    }
    for route in &plan.routes {
        let what = || format!("route {} by {name}", route.destination);
        step(what, add_route(netlink, index, route)).await?;
    }
    for (ip, mac) in &plan.neighbours {
        step(|| format!("make {ip} known as a neighbour by {name}"), async {
            let add = netlink.neighbours().add(index, *ip).link_layer_address(mac);
            Ok(add.replace().execute().await?)
        })
        .await?;
    }
    for (from, table) in &plan.rules {
        let what = || format!("route what comes from {from} by table {table}");
        step(what, add_rule(netlink, *from, *table)).await?;
    }
    Ok(())
}

/// Takes the addresses of a plan away from its device, and the routes by them, which stays where it is.
pub async fn strip(netlink: &Handle, plan: &Plan) -> Result<(), NetworkError> {
    forget_rules(netlink, plan).await?;
    step(|| format!("take the addresses of {} away", plan.name), async {
        let index = link_of(netlink, &plan.name).await?.header.index;
        let all = netlink.address().get().set_link_index_filter(index).execute();
        for address in all.try_collect::<Vec<_>>().await? {
            let is_ours = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(ip) if plan.addresses.iter().any(|net| net.addr() == *ip));
            if address.attributes.iter().any(is_ours) {
                netlink.address().del(address).execute().await?;
            }
        }
        Ok(())
    })
    .await
}

/// Moves the device of a plan into another namespace, and forgets what its routes do not take along.
pub async fn send_back(netlink: &Handle, plan: &Plan, to: RawFd) -> Result<(), NetworkError> {
    forget_rules(netlink, plan).await?;
    step(|| format!("move {} out of its namespace", plan.name), async {
        let Some(link) = with_address(netlink, plan.mac).await? else { return Ok(()) };
        let index = link.header.index;
        netlink.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await?;
        // A name that nobody else has there: its own one may be taken.
        let out = LinkUnspec::new_with_index(index).name(format!("back{index}")).setns_by_fd(to);
        Ok(netlink.link().set(out.build()).execute().await?)
    })
    .await
}

async fn bring_up(netlink: &Handle, plan: &Plan) -> Result<u32, NetlinkError> {
    let link = link_of(netlink, &plan.name).await?;
    let current = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let mtu = if plan.mtu == 0 { current.unwrap_or(1500) } else { plan.mtu };
    let index = link.header.index;
    let up = LinkUnspec::new_with_index(index).mtu(mtu.saturating_sub(plan.overhead)).up();
    netlink.link().set(up.build()).execute().await?;
    Ok(index)
}

async fn link_of(netlink: &Handle, name: &str) -> Result<LinkMessage, NetlinkError> {
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?;
    link.ok_or_else(|| NetlinkError::Socket(io::Error::from(io::ErrorKind::NotFound)))
}

async fn with_address(netlink: &Handle, mac: [u8; 6]) -> Result<Option<LinkMessage>, NetlinkError> {
    let is_it = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(address) if address[..] == mac);
    let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
    Ok(links.into_iter().find(|link| link.attributes.iter().any(is_it)))
}

async fn add_route(netlink: &Handle, index: u32, route: &Route) -> Result<(), NetlinkError> {
    let (ip, length) = (route.destination.addr(), route.destination.prefix_len());
    let wrong = |_| NetlinkError::Socket(io::Error::from(io::ErrorKind::InvalidInput));
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
    Ok(netlink.route().add(message.build()).execute().await?)
}

async fn add_rule(netlink: &Handle, from: IpAddr, table: u32) -> Result<(), NetlinkError> {
    let rule = netlink.rule().add().table_id(table).priority(RULE_PRIORITY);
    let rule = rule.action(RuleAction::ToTable);
    match from {
        IpAddr::V4(ip) => rule.v4().source_prefix(ip, 32).execute().await?,
        IpAddr::V6(ip) => rule.v6().source_prefix(ip, 128).execute().await?,
    }
    Ok(())
}

/// Takes away the rules of a plan, which go with no address and no device.
async fn forget_rules(netlink: &Handle, plan: &Plan) -> Result<(), NetworkError> {
    for table in plan.tables() {
        step(|| format!("take away the rules of table {table}"), remove_rules(netlink, table))
            .await?;
    }
    Ok(())
}

/// Takes away every rule that leads to a table.
async fn remove_rules(netlink: &Handle, table: u32) -> Result<(), NetlinkError> {
    let leads_there = |rule: &RuleMessage| {
        let named = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Table(number) => Some(*number),
            _ => None,
        });
        named.unwrap_or(rule.header.table.into()) == table
    };
    for version in [IpVersion::V4, IpVersion::V6] {
        let all: Vec<RuleMessage> = netlink.rule().get(version).execute().try_collect().await?;
        for rule in all.into_iter().filter(leads_there) {
            netlink.rule().del(rule).execute().await?;
        }
    }
    Ok(())
}
