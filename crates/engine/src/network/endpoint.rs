//! From what was joined to what the VM is told of it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_net::IpNet;
use coracle_net::cni::Dns;
use coracle_net::discover::{Device, Route};
use coracle_net::link::{Mac, mac_text};
use coracle_net::private::Joined;
use coracle_uvm::network::{AdapterExtra, AdapterNeighbour, AdapterRoute, Carrier, Endpoint};
use coracle_uvm::schema::HnsEndpoint;

use super::AttachRequest;

/// A card on a private network: each address alone, the host as the gateway of all else.
pub(super) fn private(joined: Joined, request: &AttachRequest) -> Endpoint {
    let Joined { network, lease, tap, has_names } = joined;
    let gateways = network.gateways();
    let dns = match &request.dns[..] {
        [] if has_names => gateways.clone(),
        [] => host_servers(),
        given => given.to_vec(),
    };
    let mut alone = lease.addresses.iter().copied().map(IpNet::from);
    let first = alone.next();
    Endpoint {
        described: HnsEndpoint {
            // Names of networks may differ in case alone, ids of endpoints may not.
            id: lease.tap,
            name: network.name,
            mac_address: lease.mac,
            ip_address: first.map(|net| net.addr().to_string()).unwrap_or_default(),
            prefix_length: first.map(|net| net.prefix_len()).unwrap_or_default(),
            gateway_address: listed(&gateways),
            dns_server_list: listed(&dns),
            ..HnsEndpoint::default()
        },
        extra: AdapterExtra {
            addresses: alone.map(|net| net.to_string()).collect(),
            mtu: network.mtu,
            routes: network.subnets.iter().zip(&gateways).map(through).collect(),
            ..AdapterExtra::default()
        },
        carrier: Carrier::Tap(Arc::new(tap)),
    }
}

/// A card that is as the device somebody prepared: name, addresses, routes, neighbours.
pub(super) fn of_device(
    network: &str,
    device: &Device,
    tap: OwnedFd,
    request: &AttachRequest,
    dns: &Dns,
) -> Endpoint {
    let servers = match (&request.dns[..], &dns.nameservers[..]) {
        ([], []) => listed(&host_servers()),
        ([], theirs) => theirs.join(","),
        (given, _) => listed(given),
    };
    let is_default = |route: &&Route| route.destination.prefix_len() == 0;
    let gateways: Vec<IpAddr> =
        device.routes.iter().filter(is_default).filter_map(|route| route.gateway).collect();
    let others = device.routes.iter().filter(|r| !is_default(r) || r.gateway.is_none());
    let mut addresses = device.addresses.iter();
    let first = addresses.next();
    Endpoint {
        described: HnsEndpoint {
            id: format!("{}-{}", plain(network), device.index),
            name: device.name.clone(),
            mac_address: device.mac.as_ref().map(mac_text).unwrap_or_default(),
            ip_address: first.map(|net| net.addr().to_string()).unwrap_or_default(),
            prefix_length: first.map(IpNet::prefix_len).unwrap_or_default(),
            gateway_address: listed(&gateways),
            dns_suffix: dns.search.join(","),
            dns_server_list: servers,
            ..HnsEndpoint::default()
        },
        extra: AdapterExtra {
            name: device.name.clone(),
            addresses: addresses.map(IpNet::to_string).collect(),
            routes: others.map(route).collect(),
            neighbours: device.neighbours.iter().map(neighbour).collect(),
            mtu: device.mtu,
        },
        carrier: Carrier::Tap(Arc::new(tap)),
    }
}

/// The network itself is reached by its own card, whichever has the default route.
fn through((subnet, gateway): (&IpNet, &IpAddr)) -> AdapterRoute {
    AdapterRoute { destination: subnet.to_string(), gateway: gateway.to_string(), metric: 0 }
}

fn route(route: &Route) -> AdapterRoute {
    AdapterRoute {
        destination: route.destination.to_string(),
        gateway: route.gateway.map(|ip| ip.to_string()).unwrap_or_default(),
        metric: route.metric,
    }
}

fn neighbour((ip, mac): &(IpAddr, Mac)) -> AdapterNeighbour {
    AdapterNeighbour { address: ip.to_string(), mac_address: mac_text(mac) }
}

fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// An id of an endpoint is letters and digits.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The servers this host asks, but those only it can reach.
fn host_servers() -> Vec<IpAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let words = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let parsed = words.filter_map(|word| word.trim().parse().ok());
    parsed.filter(|ip: &IpAddr| !ip.is_loopback()).collect()
}
