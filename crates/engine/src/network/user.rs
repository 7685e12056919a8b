//! The network QEMU makes up: nobody else is on it, and no right on the host is needed.
//!
//! The host's own loopback answers at 10.0.2.2, to everything that may begin to talk at all: whoever
//! runs code nobody trusts and has root is better served by a private network.

use std::net::Ipv4Addr;

use coracle_net::link::mac_text;
use coracle_uvm::network::{AdapterExtra, Carrier, Endpoint, UserNetwork};
use coracle_uvm::schema::HnsEndpoint;

use super::{AttachRequest, Attached, Card, Egress, Published};

/// Addresses QEMU gives out.
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(super) const MTU: u32 = 1500;

/// A card on it.
pub(super) fn card(request: &AttachRequest) -> Card {
    let mac = mac_text(&request.mac.unwrap_or([0x02, 0, 0x0a, 0, 0x02, 0x0f]));
    let dns = match &request.dns[..] {
        [] => NAMES.to_string(),
        given => given.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let network = UserNetwork {
        forwards: request.published.iter().map(forward).collect(),
        is_restricted: request.egress != Egress::All,
    };
    Card {
        shown: Attached::user(request, mac.clone()),
        endpoint: Endpoint {
            described: HnsEndpoint {
                id: "user".to_owned(),
                name: "user".to_owned(),
                mac_address: mac,
                ip_address: GUEST.to_string(),
                prefix_length: 24,
                gateway_address: HOST.to_string(),
                dns_server_list: dns,
                ..HnsEndpoint::default()
            },
            extra: AdapterExtra::default(),
            carrier: Carrier::User(network),
        },
    }
}

/// As QEMU writes it; without an address, every one.
fn forward(port: &Published) -> String {
    let ip = port.ip.map(|ip| ip.to_string()).unwrap_or_default();
    format!("{}:{ip}:{}-:{}", port.protocol.name(), port.host, port.guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_written_as_qemu_has_them() {
        let written = |text: &str| forward(&text.parse().unwrap());
        assert_eq!(written("127.0.0.1:8080:80"), "tcp:127.0.0.1:8080-:80");
        assert_eq!(written("53:5353/udp"), "udp::53-:5353");
    }
}
