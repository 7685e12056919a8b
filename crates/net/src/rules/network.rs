//! The rules of a private network as a whole.

use ipnet::IpNet;
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::words::{
    Builder, accept, comes_in_on, drop_it, field, goes_out_elsewhere, goes_out_on, header_of, is,
    masquerade, network, text, was_redirected,
};
use super::{BEFORE_FILTERS, Rules, table_of};

/// Every bridge of ours.
const OURS: &str = "corbr*";

/// Where the kernel's own NAT stands.
const SOURCE_NAT: i32 = 100;

/// What leaves the networks behind `bridge` carries the host's address; what was published is
/// reachable from the same network too.
pub fn network_rules(bridge: &str, subnets: &[IpNet]) -> Rules {
    let mut rules = Rules::new(format!("make the rules of the bridge {bridge}"));
    let table = table_of(bridge);
    rules.table(NfFamily::INet, &table);
    let mut inet = Builder { rules: &mut rules, family: NfFamily::INet, table };

    inet.chain("post", NfChainType::NAT, NfHook::Postrouting, SOURCE_NAT);
    for subnet in subnets {
        let from = || is(field(header_of(subnet.addr()), "saddr"), network(subnet));
        inet.rule("post", vec![from(), goes_out_elsewhere(bridge), masquerade()]);
        // A sandbox that dials a port its own network publishes hears back from the host.
        inet.rule("post", vec![from(), goes_out_on(bridge), was_redirected(), masquerade()]);
    }

    // The ports of the bridge reach each other by way of the host alone: it must not tell them of a
    // shorter way.
    inet.chain("out", NfChainType::Filter, NfHook::Output, 0);
    for (protocol, kind) in [("icmp", "redirect"), ("icmpv6", "nd-redirect")] {
        let redirect = is(field(protocol, "type"), text(kind));
        inet.rule("out", vec![goes_out_on(bridge), redirect, drop_it()]);
    }

    // From one network of ours to another leads only what was published.
    inet.chain("forward", NfChainType::Filter, NfHook::Forward, BEFORE_FILTERS);
    let to_another = || [comes_in_on(bridge), goes_out_on(OURS), goes_out_elsewhere(bridge)];
    inet.rule("forward", to_another().into_iter().chain([was_redirected(), accept()]).collect());
    inet.rule("forward", to_another().into_iter().chain([drop_it()]).collect());
    rules
}
