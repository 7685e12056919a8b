//! Endpoints of each kind that this kernel can make, in a namespace of the test's own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod support;

use std::os::fd::{AsFd, OwnedFd};

use coracle_net::discover::{self, Device, Kind};
use coracle_net::endpoint::{Carrier, Endpoint, Interworking, attach, detach};
use coracle_net::{NetError, tap};
use support::World;

fn device(world: &World, name: &str) -> Device {
    let all = world.run(discover::devices).unwrap();
    all.into_iter().find(|device| device.name == name).unwrap()
}

/// What comes out of a tap, its header of offloads cut off; what concerns no one is skipped.
fn next_frame(tap: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut buffer = [0; 2048];
    loop {
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut polled = [PollFd::new(tap, PollFlags::IN)];
        assert!(poll(&mut polled, Some(&limit)).unwrap() > 0, "nothing comes out of the tap");
        let length = rustix::io::read(tap, &mut buffer).unwrap();
        let frame = &buffer[10..length];
        if wanted(frame) {
            return frame.to_vec();
        }
    }
}

/// Sends an ARP request in at the far end and sees it come out at the VM's, then the other way round.
fn carries_frames_both_ways(world: &World, tap: &OwnedFd, mac: &str) {
    let is_arp = |frame: &[u8]| frame.len() >= 42 && frame[12..14] == [8, 6];
    world.sh("ip netns exec far true 2>/dev/null; (ping -c1 -W1 -I far 10.9.0.2 || true) >/dev/null 2>&1");
    let request = next_frame(tap, is_arp);
    assert_eq!(request[38..42], [10, 9, 0, 2], "who has 10.9.0.2");
    let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    // The answer, as a guest would give it.
    let mut answer = vec![0; 10];
    answer.extend(&request[6..12]);
    answer.extend(&bytes);
    answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend(&bytes);
    answer.extend([10, 9, 0, 2]);
    answer.extend(&request[22..32]);
    rustix::io::write(tap.as_fd(), &answer).unwrap();
    let seen = world.sh("for i in 1 2 3 4 5 6 7 8 9 10; do ip neigh show dev far | grep lladdr && break; sleep 0.1; done; true");
    assert!(seen.contains(mac), "{seen}");
}

const FAR: &str = "ip link add far type veth peer name near && ip link set near address \
    02:00:00:00:00:05 && ip addr add 10.9.0.1/24 dev far && ip addr add 10.9.0.2/24 dev near && \
    ip link set far up && ip link set near up && ip route add 10.20.0.0/16 via 10.9.0.1 dev near \
    metric 7 && ip neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev near nud permanent && \
    ip link set near mtu 1400";

#[test]
fn what_somebody_put_into_a_namespace_is_found() {
    let world = World::new();
    world.sh(FAR);
    let near = device(&world, "near");
    assert_eq!((near.kind, near.mtu, near.mac), (Kind::Veth, 1400, Some([2, 0, 0, 0, 0, 5])));
    assert_eq!(near.addresses, ["10.9.0.2/24".parse().unwrap()]);
    let [route] = near.routes[..] else { panic!("{:?}", near.routes) };
    assert_eq!((route.destination.to_string(), route.metric), ("10.20.0.0/16".to_owned(), 7));
    assert_eq!(route.gateway, Some("10.9.0.1".parse().unwrap()));
    assert_eq!(near.neighbours, [("10.9.0.77".parse().unwrap(), [2, 0, 0, 0, 0, 0x77])]);
    // The one whose name ends in eth0 comes first.
    world.sh("ip link add x-eth0 type bridge");
    let all = world.run(discover::devices).unwrap();
    assert_eq!(all[0].name, "x-eth0");
    let error = Endpoint::of(&all[0], Interworking::TcMirror, "t").unwrap_err();
    assert!(error.to_string().contains("a bridge device cannot"), "{error}");
}

#[test]
fn a_veth_and_a_macvlan_carry_frames_and_are_given_back_as_they_were() {
    let models = [Interworking::TcMirror, Interworking::Macvtap];
    for (kind, model) in [("near", models[0]), ("near", models[1]), ("vlan", models[0])] {
        let world = World::new();
        world.sh(FAR);
        if kind == "vlan" {
            // A macvlan on the near end, with the near end's addresses.
            world.sh(
                "ip addr flush dev near; ip link add vlan link near type macvlan mode bridge && \
                 ip link set vlan address 02:00:00:00:00:06 && ip addr add 10.9.0.2/24 dev vlan && \
                 ip link set vlan up",
            );
        }
        let before = world.seen();
        let found = device(&world, kind);
        let endpoint = Endpoint::of(&found, model, "t").unwrap();
        let is_right = matches!(
            (&endpoint, kind),
            (Endpoint::Veth(_), "near") | (Endpoint::BridgedMacvlan(_), "vlan")
        );
        assert!(is_right, "{endpoint:?}");
        let attached = world.run(|| attach(endpoint, found.mtu)).unwrap();
        let Carrier::Tap(tap) = &attached.carrier else { panic!("{attached:?}") };
        carries_frames_both_ways(&world, tap, &attached.endpoint.interface().mac);
        world.run(|| detach(&attached.endpoint)).unwrap();
        world.sh("ip neigh flush dev far");
        drop(attached.carrier);
        if model == Interworking::Macvtap {
            // Its addresses are back; the routes of others over it are theirs to make again.
            world.sh("ip route add 10.20.0.0/16 via 10.9.0.1 dev near metric 7");
        }
        assert_eq!(world.seen(), before, "{kind} {model:?}");
        world.run(|| detach(&attached.endpoint)).unwrap();
    }
}

#[test]
fn taps_are_opened_as_they_are() {
    let world = World::new();
    world.sh("ip tuntap add dev tap7 mode tap vnet_hdr && ip addr add 10.9.0.1/24 dev tap7");
    let found = device(&world, "tap7");
    let endpoint = Endpoint::of(&found, Interworking::TcMirror, "t").unwrap();
    assert!(matches!(endpoint, Endpoint::Tuntap(_)));
    let attached = world.run(|| attach(endpoint, 1500)).unwrap();
    let Carrier::Tap(tap) = &attached.carrier else { panic!() };
    world.sh("(ping -c1 -W1 10.9.0.2 || true) >/dev/null 2>&1");
    next_frame(tap, |frame| frame.get(12..14) == Some(&[8, 6]));
    world.run(|| detach(&attached.endpoint)).unwrap();
    drop(attached);
    assert!(world.sh("ip -o link").contains("tap7"), "it was there before and stays");
    let error = world.run(|| tap::open_tap("a-name-that-is-too-long")).unwrap_err();
    assert!(matches!(error, NetError::File { .. }), "{error}");
}

#[test]
fn a_macvtap_is_opened_in_its_own_namespace() {
    let world = World::new();
    world.sh(FAR);
    world.sh("ip addr flush dev near && ip link add mvt link near type macvtap mode bridge && \
              ip link set mvt address 02:00:00:00:00:06");
    let found = device(&world, "mvt");
    let endpoint = Endpoint::of(&found, Interworking::TcMirror, "t").unwrap();
    assert!(matches!(endpoint, Endpoint::Macvtap(_)));
    let attached = world.run(|| attach(endpoint, 1500)).unwrap();
    let Carrier::Tap(tap) = &attached.carrier else { panic!() };
    carries_frames_both_ways(&world, tap, "02:00:00:00:00:06");
    world.run(|| detach(&attached.endpoint)).unwrap();
    drop(attached);
    assert!(world.sh("ip -o link").contains("mvt@near"), "it was there before and stays");
}

#[test]
fn a_failed_attachment_leaves_the_endpoint_as_it_was() {
    let world = World::new();
    world.sh(FAR);
    let before = world.seen();
    let found = device(&world, "near");
    let endpoint = Endpoint::of(&found, Interworking::TcMirror, "t").unwrap();
    // Somebody has an ingress queue there already.
    world.sh("tc qdisc add dev near ingress");
    let Endpoint::Veth(pair) = &endpoint else { panic!() };
    let error = world.run(|| attach(endpoint.clone(), 1400)).unwrap_err();
    assert!(error.to_string().contains("ingress queue"), "{error}");
    assert!(!world.sh("ip -o link").contains(&format!(" {}:", pair.carrier)));
    world.sh("tc qdisc del dev near ingress || true");
    assert_eq!(world.seen(), before);
    // The device has gone.
    world.sh("ip link del near");
    let error = world.run(|| attach(endpoint.clone(), 1400)).unwrap_err();
    assert!(matches!(error, NetError::NoDevice { .. }), "{error}");
    world.run(|| detach(&endpoint)).unwrap();
}

#[test]
fn hardware_is_told_by_its_address_and_no_server_is_told_by_its_socket() {
    let world = World::new();
    let socket = world.path("no.sock").display().to_string();
    let interface = coracle_net::endpoint::Interface::default();
    let user = Endpoint::VhostUser { interface: interface.clone(), socket: socket.clone() };
    let error = world.run(|| attach(user.clone(), 1500)).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot find the server at {socket}"));
    std::fs::write(&socket, "").unwrap();
    let error = world.run(|| attach(user, 1500)).unwrap_err();
    let NetError::File { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.to_string(), "it is no socket");
    let physical = Endpoint::Physical { interface, bdf: "0000:00:01.0".to_owned() };
    let attached = world.run(|| attach(physical, 1500)).unwrap();
    assert!(matches!(attached.carrier, Carrier::Pci(bdf) if bdf == "0000:00:01.0"));
}

#[test]
fn a_device_that_is_renamed_or_moved_while_it_is_attached_is_given_back_all_the_same() {
    let world = World::new();
    world.sh(FAR);
    let before = world.seen();
    let found = device(&world, "near");
    let endpoint = Endpoint::of(&found, Interworking::TcMirror, "t").unwrap();
    let attached = world.run(|| attach(endpoint.clone(), 1400)).unwrap();
    world.sh("ip link set near name other");
    world.run(|| detach(&attached.endpoint)).unwrap();
    world.sh("ip link set other name near");
    drop(attached);
    assert_eq!(world.seen(), before);
    // Moved: its half has gone with it, ours is taken away.
    let attached = world.run(|| attach(endpoint, 1400)).unwrap();
    let elsewhere = World::new();
    let at = elsewhere.path("net").display().to_string();
    world.sh(&format!("ip link set near netns {at}"));
    world.run(|| detach(&attached.endpoint)).unwrap();
    let Endpoint::Veth(pair) = &attached.endpoint else { panic!() };
    assert!(!world.sh("ip -o link").contains(&format!(" {}:", pair.carrier)));
}

#[test]
fn a_namespace_that_goes_while_it_is_used_takes_everything_along() {
    let world = World::new();
    let gone = world.path("gone");
    let inner = coracle_net::namespace::Namespace::create(&gone).unwrap();
    inner
        .run(|| {
            let made = std::process::Command::new("/usr/sbin/ip")
                .args(["link", "add", "far", "type", "veth", "peer", "name", "near"])
                .status();
            assert!(made.unwrap().success());
            Ok(())
        })
        .unwrap();
    let found = inner.run(discover::devices).unwrap();
    let found = found.into_iter().find(|device| device.name == "near").unwrap();
    let endpoint = Endpoint::of(&found, Interworking::TcMirror, "t").unwrap();
    let attached = inner.run(|| attach(endpoint, 1500)).unwrap();
    coracle_net::namespace::delete(&gone).unwrap();
    // Our own descriptor keeps it for as long as we look.
    inner.run(|| detach(&attached.endpoint)).unwrap();
    drop((attached, inner));
    let error = coracle_net::namespace::Namespace::open(&gone).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    coracle_net::namespace::delete(&gone).unwrap();
}
