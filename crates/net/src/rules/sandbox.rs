//! The rules of one sandbox on a private network.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables::expr::{Expression, MetaKey, NamedExpression, SetItem};
use nftables::stmt::Statement;
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::words::{
    Builder, accept, any_of, comes_in_elsewhere, comes_in_on, dnat, drop_it, field, goes_out_on,
    header_of, is, is_an_answer, is_faster_than, is_for_this_host, is_not, meta, network, number,
    text, was_redirected,
};
use super::{BEFORE_FILTERS, OURS, Rules, table_of};
use crate::egress::Egress;
use crate::link::{Mac, mac_text};
use crate::publish::{Protocol, Published};
use crate::rates::Rates;

/// Where the kernel's own NAT stands, on the way in and for what this host sends.
const DESTINATION_NAT: i32 = -100;
/// Before anything else looks.
const FIRST: i32 = -300;
/// After everything else.
const LAST: i32 = 300;

/// What the rules of a sandbox are made from.
#[derive(Debug, Clone)]
pub struct SandboxRules<'a> {
    /// Its tap.
    pub tap: &'a str,
    /// The subnets of its network.
    pub subnets: &'a [IpNet],
    /// Its hardware address.
    pub mac: &'a Mac,
    /// Its addresses, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// The host's addresses on the network.
    pub gateways: &'a [IpAddr],
    /// Its published ports.
    pub published: &'a [Published],
    /// What it may begin to talk to.
    pub egress: &'a Egress,
    /// How fast it may.
    pub rates: Rates,
}

/// All rules of a sandbox.
pub fn sandbox_rules(sandbox: &SandboxRules<'_>) -> Rules {
    let mut rules = Rules::new(format!("make the rules of {}", sandbox.tap));
    let table = table_of(sandbox.tap);
    rules.table(NfFamily::INet, &table);
    let mut inet = Builder { rules: &mut rules, family: NfFamily::INet, table };
    only_its_own_addresses(&mut inet, sandbox);
    only_its_own_network(&mut inet, sandbox);
    slow_down(&mut inet, sandbox);
    publish(&mut inet, sandbox);
    if let Egress::Only(allowed) = sandbox.egress {
        only_to(&mut inet, sandbox, allowed);
    }
    rules
}

/// What comes out of the tap has the sandbox's hardware address and one of its addresses, or is on its
/// way to get one. What it says about others' addresses by ARP nobody hears: it has a wire of its own.
fn only_its_own_addresses(inet: &mut Builder<'_>, sandbox: &SandboxRules<'_>) {
    inet.chain("own", NfChainType::Filter, NfHook::Prerouting, FIRST);
    let mut drop_if = |matches: Vec<Statement<'static>>| {
        let all = std::iter::once(comes_in_on(sandbox.tap)).chain(matches);
        inet.rule("own", all.chain(std::iter::once(drop_it())).collect());
    };
    drop_if(vec![is_not(field("ether", "saddr"), text(mac_text(sandbox.mac)))]);
    for (v4, family) in [(true, "ipv4"), (false, "ipv6")] {
        let mut own: Vec<IpNet> = sandbox
            .addresses
            .iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .map(|ip| IpNet::from(*ip))
            .collect();
        match own.first().copied() {
            None => drop_if(vec![is(meta(MetaKey::Nfproto), text(family))]),
            Some(ip) => {
                if !v4 {
                    let more = ["fe80::/10", "::/128"].iter();
                    own.extend(more.filter_map(|net| net.parse::<IpNet>().ok()));
                }
                let from = field(header_of(ip.addr()), "saddr");
                drop_if(vec![is_not(from, any_of(own.iter()))]);
            }
        }
    }
}

/// Another network of ours is reached by what it publishes alone, and so is the sandbox from outside,
/// even by who knows a route to it.
fn only_its_own_network(inet: &mut Builder<'_>, sandbox: &SandboxRules<'_>) {
    inet.chain("networks", NfChainType::Filter, NfHook::Forward, BEFORE_FILTERS);
    let to_ours = || vec![comes_in_on(sandbox.tap), goes_out_on(OURS)];
    let mut rule = |more: Vec<Statement<'static>>| {
        inet.rule("networks", to_ours().into_iter().chain(more).collect());
    };
    rule(vec![was_redirected(), accept()]);
    for subnet in sandbox.subnets {
        let to = is(field(header_of(subnet.addr()), "daddr"), network(subnet));
        rule(vec![to, accept()]);
    }
    // An answer to who came from another network by a published port goes back there.
    rule(vec![is_an_answer(), accept()]);
    rule(vec![drop_it()]);
    let from_outside = || vec![goes_out_on(sandbox.tap), comes_in_elsewhere(OURS)];
    for end in [vec![is_an_answer(), accept()], vec![was_redirected(), accept()], vec![drop_it()]] {
        inet.rule("networks", from_outside().into_iter().chain(end).collect());
    }
}

/// What is too much is dropped, which is how TCP learns to send less.
fn slow_down(inet: &mut Builder<'_>, sandbox: &SandboxRules<'_>) {
    if let Some(bytes) = sandbox.rates.send {
        let too_fast = vec![comes_in_on(sandbox.tap), is_faster_than(bytes), drop_it()];
        inet.rule("own", too_fast);
    }
    if let Some(bytes) = sandbox.rates.receive {
        inet.chain("to", NfChainType::Filter, NfHook::Postrouting, LAST);
        inet.rule("to", vec![goes_out_on(sandbox.tap), is_faster_than(bytes), drop_it()]);
    }
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
            rule.push(is(meta(MetaKey::Nfproto), text(family)));
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
    let from_it = |more: Vec<Statement<'static>>| {
        std::iter::once(comes_in_on(sandbox.tap)).chain(more).collect::<Vec<_>>()
    };
    for chain in ["forward", "in"] {
        inet.rule(chain, from_it(vec![is_an_answer(), accept()]));
        for v4 in [true, false] {
            let of_family = allowed.iter().copied().filter(|net| net.addr().is_ipv4() == v4);
            let of_family = IpNet::aggregate(&of_family.collect());
            let Some(first) = of_family.first() else { continue };
            let to = is(field(header_of(first.addr()), "daddr"), any_of(of_family.iter()));
            inet.rule(chain, from_it(vec![to, accept()]));
        }
    }
    for gateway in sandbox.gateways {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let to = is(field(header_of(*gateway), "daddr"), text(gateway.to_string()));
            let names = is(field(protocol.name(), "dport"), number(53));
            inet.rule("in", from_it(vec![to, names, accept()]));
        }
    }
    // Without it no neighbour is found, not even the gateway.
    let kinds =
        ["nd-neighbor-solicit", "nd-neighbor-advert"].map(|kind| SetItem::Element(text(kind)));
    let kinds = Expression::Named(NamedExpression::Set(kinds.to_vec()));
    inet.rule("in", from_it(vec![is(field("icmpv6", "type"), kinds), accept()]));
    for chain in ["forward", "in"] {
        inet.rule(chain, from_it(vec![drop_it()]));
    }
}
