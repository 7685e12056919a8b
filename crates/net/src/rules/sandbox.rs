//! The rules of one sandbox on a private network.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::{Expression, MetaKey};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::words::{
    Builder, accept, any_of, comes_in_on, dnat, drop_it, field, header_of, is, is_an_answer,
    is_for_this_host, is_not, number, text,
};
use super::{BEFORE_FILTERS, Rules, table_of};
use crate::egress::Egress;
use crate::link::{Mac, mac_text};
use crate::publish::{Protocol, Published};

/// Where the kernel's own NAT stands, on the way in and for what this host sends.
const DESTINATION_NAT: i32 = -100;
/// On a bridge, before anything else looks.
const FIRST: i32 = -300;

/// What the rules of a sandbox are made from.
#[derive(Debug, Clone)]
pub struct SandboxRules<'a> {
    /// Its tap.
    pub tap: &'a str,
    /// The bridge the tap is a port of.
    pub bridge: &'a str,
    /// Its hardware address.
    pub mac: &'a Mac,
    /// Its addresses, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// The host's addresses on the bridge.
    pub gateways: &'a [IpAddr],
    /// Its published ports.
    pub published: &'a [Published],
    /// What it may begin to talk to.
    pub egress: &'a Egress,
}

/// All rules of a sandbox.
pub fn sandbox_rules(sandbox: &SandboxRules<'_>) -> Rules {
    let mut rules = Rules::new(format!("make the rules of {}", sandbox.tap));
    let table = table_of(sandbox.tap);
    rules.table(NfFamily::Bridge, &table);
    let mut bridge = Builder { rules: &mut rules, family: NfFamily::Bridge, table: table.clone() };
    only_its_own_addresses(&mut bridge, sandbox);
    rules.table(NfFamily::INet, &table);
    let mut inet = Builder { rules: &mut rules, family: NfFamily::INet, table };
    publish(&mut inet, sandbox);
    if let Egress::Only(allowed) = sandbox.egress {
        only_to(&mut inet, sandbox, allowed);
    }
    rules
}

/// What comes out of the tap has the sandbox's hardware address and one of its addresses, or is on its
/// way to get one.
fn only_its_own_addresses(bridge: &mut Builder<'_>, sandbox: &SandboxRules<'_>) {
    bridge.chain("own", NfChainType::Filter, NfHook::Prerouting, FIRST);
    let from_it = || comes_in_on(sandbox.tap);
    let mac = || text(mac_text(sandbox.mac));
    let mut rule = |matches: Vec<Statement<'static>>, end: Statement<'static>| {
        let all = std::iter::once(from_it()).chain(matches).chain(std::iter::once(end));
        bridge.rule("own", all.collect());
    };
    rule(vec![is_not(field("ether", "saddr"), mac())], drop_it());
    let own = |v4: bool| sandbox.addresses.iter().find(move |ip| ip.is_ipv4() == v4);
    let ether_type = |kind: &'static str| is(field("ether", "type"), text(kind));
    match own(true) {
        Some(ip) => {
            let sender = is_not(field("arp", "saddr ip"), text(ip.to_string()));
            rule(vec![ether_type("arp"), sender], drop_it());
            rule(vec![ether_type("arp"), is_not(field("arp", "saddr ether"), mac())], drop_it());
            rule(vec![is_not(field("ip", "saddr"), text(ip.to_string()))], drop_it());
        }
        None => {
            rule(vec![ether_type("arp")], drop_it());
            rule(vec![ether_type("ip")], drop_it());
        }
    }
    match own(false) {
        Some(ip) => {
            let mut allowed = vec![IpNet::from(*ip)];
            allowed
                .extend(["fe80::/10", "::/128"].iter().filter_map(|net| net.parse::<IpNet>().ok()));
            rule(vec![is_not(field("ip6", "saddr"), any_of(allowed.iter()))], drop_it());
            // The link's own addresses are for finding neighbours: no rule below knows whose they are.
            let from_link = is(field("ip6", "saddr"), any_of(allowed[1..2].iter()));
            let no_icmp = is_not(super::words::meta(MetaKey::L4proto), text("ipv6-icmp"));
            rule(vec![from_link, no_icmp], drop_it());
        }
        None => rule(vec![ether_type("ip6")], drop_it()),
    }
    // Nothing else is spoken on our networks.
    for known in ["arp", "ip", "ip6"] {
        rule(vec![ether_type(known)], accept());
    }
    rule(Vec::new(), drop_it());
}

/// Ports of the host lead to the sandbox. What the host's own programs send to its loopback addresses
/// is the forwarder's business.
fn publish(inet: &mut Builder<'_>, sandbox: &SandboxRules<'_>) {
    inet.chain("pre", NfChainType::NAT, NfHook::Prerouting, DESTINATION_NAT);
    inet.chain("out", NfChainType::NAT, NfHook::Output, DESTINATION_NAT);
    for port in sandbox.published.iter().filter(|port| !port.is_loopback()) {
        for to in sandbox.addresses {
            if port.ip.is_some_and(|ip| ip.is_ipv4() != to.is_ipv4()) {
                continue;
            }
            for chain in ["pre", "out"] {
                inet.rule(chain, redirect(chain, port, *to));
            }
        }
    }
}

fn redirect(chain: &'static str, port: &Published, to: IpAddr) -> Vec<Statement<'static>> {
    let header = header_of(to);
    let destination = || field(header, "daddr");
    let mut rule = vec![is_for_this_host()];
    match port.ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => rule.push(is(destination(), text(ip.to_string()))),
        None if chain == "out" => {
            let loopback = if to.is_ipv4() { "127.0.0.0/8" } else { "::1/128" };
            let loopback: Vec<IpNet> = loopback.parse().into_iter().collect();
            rule.push(is_not(destination(), any_of(loopback.iter())));
        }
        None => {
            let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
            rule.push(is(super::words::meta(MetaKey::Nfproto), text(family)));
        }
    }
    let protocol = port.protocol.name();
    rule.push(is(field(protocol, "dport"), number(port.host.into())));
    rule.push(dnat(to, port.guest));
    rule
}

/// The sandbox answers whoever talks to it, asks the network's name server, and begins to talk to
/// nobody but who is allowed, be it the host itself.
fn only_to(inet: &mut Builder<'_>, sandbox: &SandboxRules<'_>, allowed: &[IpNet]) {
    inet.chain("forward", NfChainType::Filter, NfHook::Forward, BEFORE_FILTERS);
    inet.chain("in", NfChainType::Filter, NfHook::Input, BEFORE_FILTERS);
    for own in sandbox.addresses {
        let header = header_of(*own);
        let from_it = || {
            let its = is(field(header, "saddr"), text(own.to_string()));
            vec![comes_in_on(sandbox.bridge), its]
        };
        let with = |more: Vec<Statement<'static>>| from_it().into_iter().chain(more).collect();
        let of_family: Vec<IpNet> = IpNet::aggregate(
            &allowed.iter().copied().filter(|n| n.addr().is_ipv4() == own.is_ipv4()).collect(),
        );
        for chain in ["forward", "in"] {
            inet.rule(chain, with(vec![is_an_answer(), accept()]));
            if !of_family.is_empty() {
                let to = is(field(header, "daddr"), any_of(of_family.iter()));
                inet.rule(chain, with(vec![to, accept()]));
            }
        }
        for gateway in sandbox.gateways.iter().filter(|ip| ip.is_ipv4() == own.is_ipv4()) {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let to = is(field(header, "daddr"), text(gateway.to_string()));
                let names = is(field(protocol.name(), "dport"), number(53));
                inet.rule("in", with(vec![to, names, accept()]));
            }
        }
        if own.is_ipv6() {
            // Without it no address is found at all.
            let kinds: Expression<'static> =
                Expression::Named(nftables::expr::NamedExpression::Set(
                    ["nd-neighbor-solicit", "nd-neighbor-advert"]
                        .map(|kind| nftables::expr::SetItem::Element(text(kind)))
                        .to_vec(),
                ));
            inet.rule("in", with(vec![is(field("icmpv6", "type"), kinds), accept()]));
        }
        for chain in ["forward", "in"] {
            inet.rule(chain, with(vec![drop_it()]));
        }
    }
}
