//! Private networks, on a real kernel, in a namespace of the test's own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod support;

use coracle_net::private::{Join, Joined, NetworkSpec, Networks};
use coracle_net::{NetError, rules};
use support::World;

fn join(sandbox: &str, network: &str) -> Join {
    Join {
        sandbox: sandbox.to_owned(),
        network: network.parse::<NetworkSpec>().unwrap(),
        aliases: Vec::new(),
        mac: None,
        published: Vec::new(),
        egress: "all".parse().unwrap(),
        rates: coracle_net::rates::Rates::default(),
    }
}

#[test]
fn the_first_makes_the_network_and_the_last_leaves_nothing() {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let before = world.seen();
    let joined: Vec<Joined> =
        ["a", "b"].map(|name| world.run(|| networks.join(&join(name, "lab"))).unwrap()).into();
    let addresses: Vec<String> =
        joined.iter().map(|joined| joined.lease.addresses[0].to_string()).collect();
    assert_eq!(addresses, ["10.89.0.2", "10.89.0.3"]);
    let routes = world.sh("ip route");
    assert!(routes.contains(&format!("10.89.0.3 dev {}", joined[1].lease.tap)), "{routes}");
    assert!(routes.contains("unreachable 10.89.0.0/24"), "{routes}");
    assert!(world.sh("ip -o addr show dev lo").contains("10.89.0.1/32"));
    assert_eq!(world.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    let ruleset = world.sh("nft list ruleset");
    assert!(ruleset.contains("masquerade") && ruleset.contains("ip saddr != 10.89.0.3 drop"));
    assert_eq!(world.run(rules::devices).unwrap().len(), 3);

    let again = world.run(|| networks.join(&join("a", "lab"))).unwrap_err();
    assert!(matches!(again, NetError::Taken { .. }), "{again}");
    drop(joined);
    world.run(|| networks.leave("lab", "a")).unwrap();
    world.run(|| networks.leave("lab", "a")).unwrap();
    assert_eq!(networks.one("lab").unwrap().leases.len(), 1);
    world.run(|| networks.leave("lab", "b")).unwrap();
    assert_eq!(world.seen(), before);
    assert!(networks.all().unwrap().is_empty());
}

#[test]
fn whoever_died_is_taken_off_and_the_rest_stays() {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let before = world.seen();
    let alive = world.run(|| networks.join(&join("alive", "lab"))).unwrap();
    // Its taps go with it, as a VM's do; rules and record are left.
    drop(world.run(|| networks.join(&join("dead", "lab"))).unwrap());
    drop(world.run(|| networks.join(&join("dead", "other"))).unwrap());
    let swept = world.run(|| networks.sweep(|name| name == "alive")).unwrap();
    assert_eq!(swept, ["dead", "dead"]);
    let names: Vec<String> = networks.all().unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["lab"]);
    drop(alive);
    world.run(|| networks.sweep(|_| false)).unwrap();
    assert_eq!(world.seen(), before);
}

#[test]
fn a_network_is_what_its_first_user_asked_for() {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let before = world.seen();
    let both = "lab,subnet=10.7.0.0/24,subnet=fd07::/64,mtu=1400";
    let one = world.run(|| networks.join(&join("a", both))).unwrap();
    assert_eq!(one.lease.addresses.len(), 2);
    assert!(world.sh("ip -o link").contains("mtu 1400"));
    assert_eq!(world.sh("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
    let other = world.run(|| networks.join(&join("b", "lab"))).unwrap();
    assert_eq!(other.lease.addresses[1].to_string(), "fd07::3");
    for (different, what) in [("lab,mtu=1500", "mtu 1400"), ("lab,subnet=10.8.0.0/24", "subnets")] {
        let error = world.run(|| networks.join(&join("c", different))).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = world.run(|| networks.join(&join("c", "two,subnet=10.7.0.0/16"))).unwrap_err();
    assert!(error.to_string().contains("10.7.0.0/24 is network lab's"), "{error}");
    let mut same = join("c", "lab");
    same.mac = Some([0x02, 0, 0, 0, 0, 9]);
    let third = world.run(|| networks.join(&same)).unwrap();
    same.sandbox = "d".to_owned();
    let error = world.run(|| networks.join(&same)).unwrap_err();
    assert!(error.to_string().contains("02:00:00:00:00:09 is taken by sandbox c"), "{error}");
    drop((one, other, third));
    world.run(|| networks.sweep(|_| false)).unwrap();
    assert_eq!(world.seen(), before);
}

#[test]
fn a_full_subnet_and_a_taken_port_are_told_by_name() {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let before = world.seen();
    let small = "lab,subnet=10.7.0.0/30";
    let mut first = join("a", small);
    first.published = vec!["127.0.0.1:8080:80".parse().unwrap()];
    let joined = world.run(|| networks.join(&first)).unwrap();
    let error = world.run(|| networks.join(&join("b", small))).unwrap_err();
    assert!(matches!(error, NetError::Exhausted { .. }), "{error}");
    let mut second = join("c", "other");
    second.published = vec!["8080:81".parse().unwrap()];
    let error = world.run(|| networks.join(&second)).unwrap_err();
    assert_eq!(error.to_string(), "port 8080/tcp of 127.0.0.1 is taken by sandbox a");
    assert!(error.help().unwrap().contains("another port"));
    // Another program has it.
    let taken = world.run(|| Ok(std::net::TcpListener::bind("127.0.0.1:9090").unwrap())).unwrap();
    second.published = vec!["127.0.0.1:9090:81".parse().unwrap()];
    let error = world.run(|| networks.join(&second)).unwrap_err();
    assert_eq!(error.to_string(), "cannot listen on 127.0.0.1:9090");
    drop((joined, taken));
    world.run(|| networks.sweep(|_| false)).unwrap();
    assert_eq!(world.seen(), before);
}

/// A datagram from the guest's end of a wire, with the header of offloads before it.
fn datagram(from_mac: [u8; 6], to_mac: &str, from: [u8; 4], to: [u8; 4], body: &[u8]) -> Vec<u8> {
    let to_mac: Vec<u8> = to_mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    let length = u16::try_from(28 + body.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(from);
    ip.extend(to);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; 10];
    frame.extend(to_mac);
    frame.extend(from_mac);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend([0x27, 0x0f, 0x27, 0x0f]);
    frame.extend((length - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(body);
    frame
}

#[test]
fn a_guest_that_takes_another_address_is_not_heard() {
    let world = World::new();
    let networks = Networks::at(world.path("networks"), None);
    let mine = [0x02, 0, 0, 0, 0, 0x11];
    let mut ask = join("a", "lab");
    ask.mac = Some(mine);
    let joined = world.run(|| networks.join(&ask)).unwrap();
    let tap = &joined.lease.tap;
    let to_mac = world.sh(&format!("ip -o link show {tap}"));
    let to_mac = to_mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let socket = world.run(|| Ok(std::net::UdpSocket::bind("10.89.0.1:9999").unwrap())).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let host = [10, 89, 0, 1];
    let other = [0x02, 0, 0, 0, 0, 0x12];
    // What is sent first would come first: once the last is there, none of the others will come.
    for (mac, ip, body) in [
        (mine, [10, 89, 0, 77], "another's address"),
        (mine, [192, 0, 2, 9], "an address of the world's"),
        (other, [10, 89, 0, 2], "another's card"),
        (mine, [10, 89, 0, 2], "its own"),
    ] {
        let frame = datagram(mac, &to_mac, ip, host, body.as_bytes());
        rustix::io::write(&joined.tap, &frame).unwrap();
    }
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(std::str::from_utf8(&buffer[..length]), Ok("its own"));
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    assert!(socket.recv(&mut buffer).is_err(), "nothing else was let through");
    drop((joined, socket));
    world.run(|| networks.sweep(|_| false)).unwrap();
}
