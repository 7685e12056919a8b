//! Endpoints as Kata's state has them (seed `persistapi.NetworkEndpoint`), to and fro.
//!
//! What its schema has no room for comes back empty: of a macvtap, a physical or a vhost-user endpoint
//! it keeps hardly more than the PCI address.

use coracle_net::IpNet;
use coracle_net::endpoint::{Endpoint, Interface, Interworking, Pair};
use coracle_persist::model;
use coracle_persist::model::{EndpointKind, InterworkingModel};

/// An endpoint as it is saved.
pub fn persisted(endpoint: &Endpoint) -> model::NetworkEndpoint {
    let mut saved = model::NetworkEndpoint::default();
    match endpoint {
        Endpoint::Veth(pair) => {
            saved.kind = EndpointKind::Veth;
            saved.veth = Some(model::VethEndpoint { net_pair: saved_pair(pair) });
        }
        Endpoint::BridgedMacvlan(pair) => {
            saved.kind = EndpointKind::BridgedMacvlan;
            let net_pair = saved_pair(pair);
            saved.bridged_macvlan = Some(model::BridgedMacvlanEndpoint { net_pair });
        }
        Endpoint::IpVlan(pair) => {
            saved.kind = EndpointKind::IpVlan;
            saved.ipvlan = Some(model::IpVlanEndpoint { net_pair: saved_pair(pair) });
        }
        Endpoint::Macvtap(_) => {
            saved.kind = EndpointKind::Macvtap;
            saved.macvtap = Some(model::MacvtapEndpoint::default());
        }
        Endpoint::Tap(interface) => {
            saved.kind = EndpointKind::Tap;
            let tap_interface = model::TapInterface {
                name: interface.name.clone(),
                tap_iface: saved_interface(interface),
                ..model::TapInterface::default()
            };
            saved.tap = Some(model::TapEndpoint { tap_interface });
        }
        Endpoint::Tuntap(interface) => {
            saved.kind = EndpointKind::Tuntap;
            let tuntap_interface = model::TuntapInterface {
                name: interface.name.clone(),
                tap_iface: saved_interface(interface),
            };
            saved.tuntap = Some(model::TuntapEndpoint { tuntap_interface });
        }
        Endpoint::Physical { bdf, .. } => {
            saved.kind = EndpointKind::Physical;
            let bdf = bdf.clone();
            let physical = model::PhysicalEndpoint { bdf, ..model::PhysicalEndpoint::default() };
            saved.physical = Some(physical);
        }
        Endpoint::VhostUser { interface, .. } => {
            saved.kind = EndpointKind::VhostUser;
            let iface_name = interface.name.clone();
            let user =
                model::VhostUserEndpoint { iface_name, ..model::VhostUserEndpoint::default() };
            saved.vhost_user = Some(user);
        }
    }
    saved
}

/// A saved endpoint, if its kind is one of the eight and what belongs to it is there.
pub fn endpoint_of(saved: &model::NetworkEndpoint) -> Option<Endpoint> {
    Some(match &saved.kind {
        EndpointKind::Veth => Endpoint::Veth(pair(&saved.veth.as_ref()?.net_pair)),
        EndpointKind::BridgedMacvlan => {
            Endpoint::BridgedMacvlan(pair(&saved.bridged_macvlan.as_ref()?.net_pair))
        }
        EndpointKind::IpVlan => Endpoint::IpVlan(pair(&saved.ipvlan.as_ref()?.net_pair)),
        EndpointKind::Macvtap => {
            saved.macvtap.as_ref()?;
            Endpoint::Macvtap(Interface::default())
        }
        EndpointKind::Tap => Endpoint::Tap(interface(&saved.tap.as_ref()?.tap_interface.tap_iface)),
        EndpointKind::Tuntap => {
            Endpoint::Tuntap(interface(&saved.tuntap.as_ref()?.tuntap_interface.tap_iface))
        }
        EndpointKind::Physical => Endpoint::Physical {
            interface: Interface::default(),
            bdf: saved.physical.as_ref()?.bdf.clone(),
        },
        EndpointKind::VhostUser => Endpoint::VhostUser {
            interface: Interface {
                name: saved.vhost_user.as_ref()?.iface_name.clone(),
                ..Interface::default()
            },
            socket: String::new(),
        },
        _ => return None,
    })
}

fn saved_pair(pair: &Pair) -> model::NetworkInterfacePair {
    model::NetworkInterfacePair {
        tap_interface: model::TapInterface {
            name: pair.carrier.clone(),
            tap_iface: model::NetworkInterface {
                name: pair.carrier.clone(),
                ..model::NetworkInterface::default()
            },
            ..model::TapInterface::default()
        },
        virt_iface: saved_interface(&pair.seen),
        net_interworking_model: match pair.model {
            Interworking::TcMirror => InterworkingModel::TcFilter,
            Interworking::Macvtap => InterworkingModel::Macvtap,
            Interworking::None => InterworkingModel::None,
        },
    }
}

fn pair(saved: &model::NetworkInterfacePair) -> Pair {
    Pair {
        seen: interface(&saved.virt_iface),
        carrier: saved.tap_interface.tap_iface.name.clone(),
        model: match saved.net_interworking_model {
            InterworkingModel::Macvtap => Interworking::Macvtap,
            InterworkingModel::None => Interworking::None,
            _ => Interworking::TcMirror,
        },
    }
}

fn saved_interface(interface: &Interface) -> model::NetworkInterface {
    let addrs = interface.addresses.iter().map(saved_address).collect();
    model::NetworkInterface {
        name: interface.name.clone(),
        hard_addr: interface.mac.clone(),
        addrs: Some(addrs),
    }
}

fn interface(saved: &model::NetworkInterface) -> Interface {
    Interface {
        name: saved.name.clone(),
        mac: saved.hard_addr.clone(),
        addresses: saved.addrs.iter().flatten().filter_map(address).collect(),
    }
}

fn saved_address(address: &IpNet) -> model::Addr {
    let ip = model::Ip::from(address.addr());
    let mask = model::IpMask::of_prefix(address.prefix_len().into(), ip.0.len());
    model::Addr { net: Some(model::IpNet { ip, mask }), ..model::Addr::default() }
}

fn address(saved: &model::Addr) -> Option<IpNet> {
    let net = saved.net.as_ref()?;
    IpNet::new(net.ip.address()?, u8::try_from(net.mask.prefix()?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        }
    }

    fn pair(model: Interworking) -> Pair {
        Pair { seen: interface("eth0"), carrier: "tap0".to_owned(), model }
    }

    #[test]
    fn each_of_the_eight_kinds_is_saved_and_found_again() {
        let bare = Interface::default;
        let whole = [
            (Endpoint::Veth(pair(Interworking::TcMirror)), "virtual"),
            (Endpoint::BridgedMacvlan(pair(Interworking::Macvtap)), "macvlan"),
            (Endpoint::IpVlan(pair(Interworking::None)), "ipvlan"),
            (Endpoint::Tap(interface("tap1")), "tap"),
            (Endpoint::Tuntap(interface("tap2")), "tuntap"),
            // Of these the schema keeps less.
            (Endpoint::Macvtap(bare()), "macvtap"),
            (Endpoint::Physical { interface: bare(), bdf: "0000:3b:00.0".to_owned() }, "physical"),
            (
                Endpoint::VhostUser {
                    interface: Interface { name: "net0".to_owned(), ..bare() },
                    socket: String::new(),
                },
                "vhost-user",
            ),
        ];
        for (endpoint, kind) in whole {
            let saved = persisted(&endpoint);
            let json = serde_json::to_value(&saved).unwrap();
            assert_eq!(json["Type"], kind);
            let members = json.as_object().unwrap().len();
            assert_eq!(members, 2, "its kind and what belongs to it: {json}");
            let read: model::NetworkEndpoint = serde_json::from_value(json).unwrap();
            assert_eq!(endpoint_of(&read), Some(endpoint));
        }
    }

    #[test]
    fn an_endpoint_without_what_belongs_to_its_kind_is_none() {
        let saved = model::NetworkEndpoint { kind: EndpointKind::Veth, ..Default::default() };
        assert_eq!(endpoint_of(&saved), None);
        assert_eq!(endpoint_of(&model::NetworkEndpoint::default()), None);
    }
}
