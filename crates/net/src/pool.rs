//! Subnets and addresses, given out and taken back. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// The subnets private networks are given when nobody says which: 10.89.0.0/24 to 10.89.255.0/24.
pub fn choose_subnet(taken: &[IpNet]) -> Option<IpNet> {
    (0..=255_u8)
        .filter_map(|third| Ipv4Net::new(Ipv4Addr::new(10, 89, third, 0), 24).ok())
        .map(IpNet::V4)
        .find(|candidate| !taken.iter().any(|net| overlap(candidate, net)))
}

/// Whether two networks share an address.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// The address of the host in a subnet: its first.
pub fn gateway(subnet: &IpNet) -> Option<IpAddr> {
    nth(subnet, 1)
}

/// The lowest address of the subnet that is nobody's. Not the host's, nor the network's own, nor the
/// broadcast address.
pub fn next_address(subnet: &IpNet, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    const SEARCH: u128 = 1 << 16;
    (2..SEARCH).map_while(|n| nth(subnet, n)).find(|address| !taken(*address))
}

/// The n-th address of a subnet, if it is one that a host can have.
fn nth(subnet: &IpNet, n: u128) -> Option<IpAddr> {
    let address = match subnet.network() {
        IpAddr::V4(network) => {
            let sum = u32::from(network).checked_add(u32::try_from(n).ok()?)?;
            IpAddr::V4(Ipv4Addr::from(sum))
        }
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from(u128::from(network).checked_add(n)?)),
    };
    let is_broadcast = address.is_ipv4() && address == subnet.broadcast();
    (subnet.contains(&address) && !is_broadcast).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_that_overlaps_a_route_is_not_chosen() {
        assert_eq!(choose_subnet(&[]), Some(net("10.89.0.0/24")));
        let taken = [net("10.89.0.128/25"), net("10.89.1.0/24"), net("192.168.0.0/16")];
        assert_eq!(choose_subnet(&taken), Some(net("10.89.2.0/24")));
        assert_eq!(choose_subnet(&[net("10.0.0.0/8")]), None);
    }

    #[test]
    fn a_full_subnet_has_no_address() {
        let subnet = net("10.0.0.0/30");
        let first = next_address(&subnet, |_| false).unwrap();
        assert_eq!(
            (gateway(&subnet), first),
            (Some("10.0.0.1".parse().unwrap()), "10.0.0.2".parse().unwrap())
        );
        assert_eq!(next_address(&subnet, |ip| ip == first), None);
        assert_eq!(next_address(&net("10.0.0.1/32"), |_| false), None);
        let six = next_address(&net("fd00::/64"), |_| false);
        assert_eq!(six, Some("fd00::2".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice_and_all_are_the_subnets(length in 20_u8..31, count in 1_usize..300) {
            let subnet = IpNet::new("10.3.0.0".parse().unwrap(), length).unwrap();
            let mut given = BTreeSet::new();
            for _ in 0..count {
                let Some(address) = next_address(&subnet, |ip| given.contains(&ip)) else { break };
                prop_assert!(subnet.contains(&address) && Some(address) != gateway(&subnet));
                prop_assert!(given.insert(address));
            }
            let room = (1_usize << (32 - length)) - 3;
            prop_assert_eq!(given.len(), count.min(room));
        }
    }
}
