//! The rules of a private network as a whole.

use ipnet::IpNet;
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::words::{
    Builder, drop_it, field, goes_out_elsewhere, goes_out_on, header_of, is, masquerade, network,
    text, was_redirected,
};
use super::{OURS, Rules, table_of};

/// Where the kernel's own NAT stands.
const SOURCE_NAT: i32 = 100;

/// What leaves the network carries the host's address.
pub fn network_rules(name: &str, subnets: &[IpNet]) -> Rules {
    let mut rules = Rules::new(format!("make the rules of {name}"));
    let table = table_of(name);
    rules.table(NfFamily::INet, &table);
    let mut inet = Builder { rules: &mut rules, family: NfFamily::INet, table };

    inet.chain("post", NfChainType::NAT, NfHook::Postrouting, SOURCE_NAT);
    for subnet in subnets {
        let from = || is(field(header_of(subnet.addr()), "saddr"), network(subnet));
        inet.rule("post", vec![from(), goes_out_elsewhere(OURS), masquerade()]);
        // A sandbox that dials its own published port would not take its own address for a peer's.
        inet.rule("post", vec![from(), goes_out_on(OURS), was_redirected(), masquerade()]);
    }

    // Sandboxes reach each other by way of the host alone: it must not tell them of a shorter way.
    inet.chain("out", NfChainType::Filter, NfHook::Output, 0);
    for (protocol, kind) in [("icmp", "redirect"), ("icmpv6", "nd-redirect")] {
        let redirect = is(field(protocol, "type"), text(kind));
        inet.rule("out", vec![goes_out_on(OURS), redirect, drop_it()]);
    }
    rules
}
