//! Network namespaces and endpoints of a VM, by the library, on a real VM: what the guest makes of what
//! it is told.
#![allow(clippy::unwrap_used)]

mod relay;
mod switch;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_bridge::message::ProcessParameters;
use coracle_net::endpoint::{Carrier as HostCarrier, Endpoint as HostEndpoint, Interface, attach};
use coracle_net::namespace::Namespace;
use coracle_net::tap;
use coracle_tests::net::Ground;
use coracle_tests::place::guest_dir;
use coracle_uvm::network::{AdapterExtra, AdapterRoute, Carrier, Endpoint};
use coracle_uvm::options::{ColdDisk, ColdMount, OptionsLcow};
use coracle_uvm::schema::HnsEndpoint;
use coracle_uvm::{UtilityVm, UvmError};
use switch::Switch;
use tokio::io::AsyncReadExt;

/// For how long an address is leased, in seconds.
const LEASE: u64 = 12;

/// A tap that is a port of the bridge `lan` on the test's ground.
fn tap(folder: &Path, ground: &Ground, name: &str) -> Arc<OwnedFd> {
    let host = Namespace::open(&folder.join("net-host")).unwrap();
    let opened = host.run(|| tap::open_tap(name)).unwrap();
    ground.run("host", &format!("ip link set {name} up master lan"));
    Arc::new(opened)
}

fn endpoint(id: &str, number: u8, tap: Arc<OwnedFd>) -> Endpoint {
    Endpoint {
        described: HnsEndpoint {
            id: id.to_owned(),
            mac_address: format!("02-00-00-00-50-{number:02x}"),
            ip_address: format!("10.50.0.{number}"),
            prefix_length: 24,
            gateway_address: "10.50.0.1".to_owned(),
            ..HnsEndpoint::default()
        },
        extra: AdapterExtra::default(),
        carrier: Carrier::Tap(tap),
    }
}

async fn sh(vm: &UtilityVm, command: &str) -> String {
    let words = ["/run/layer/bin/busybox", "sh", "-c", command].map(str::to_owned);
    let parameters = ProcessParameters {
        command_args: words.to_vec(),
        environment: [(
            "PATH".to_owned(),
            "/run/layer/bin:/run/layer/sbin:/run/layer/usr/bin".to_owned(),
        )]
        .into(),
        create_std_out_pipe: true,
        create_std_err_pipe: true,
        ..ProcessParameters::default()
    };
    let process = vm.create_process(&parameters).await.unwrap();
    let mut stdio = process.take_stdio();
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (stdio.stdout.take().unwrap(), stdio.stderr.take().unwrap());
    let both =
        async { tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) };
    let read = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    read.0.unwrap();
    read.1.unwrap();
    assert_eq!(process.wait().await.unwrap(), 0, "{command}: {out}{err}");
    out
}

/// The same, in a network namespace of the guest.
async fn inside(vm: &UtilityVm, namespace: &str, command: &str) -> String {
    let enter = format!("nsenter --net=/run/networks/{namespace}/net sh -c '{command}'");
    sh(vm, &enter).await
}

fn chain(error: &UvmError) -> String {
    let (mut text, mut next) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn started(folder: &Path, share_memory: bool) -> UtilityVm {
    let mut opts = OptionsLcow::with_boot_files("", "coracle-test", guest_dir());
    opts.options.memory_size_in_mb = 256;
    opts.options.processor_count = 1;
    opts.host.run_dir = Some(folder.join("run"));
    opts.host.share_memory = share_memory;
    opts.host.accelerator = coracle_uvm::Accel::Tcg;
    let root = std::fs::File::open(guest_dir().join("rootfs.erofs")).unwrap();
    let mount = ColdMount { path: "/run/layer".to_owned(), filesystem: "erofs".to_owned() };
    opts.host.cold_disks = vec![ColdDisk {
        serial: "root".to_owned(),
        file: Arc::new(root.into()),
        read_only: true,
        mount: Some(mount),
    }];
    let vm = UtilityVm::create_lcow(opts).await.unwrap();
    vm.start().await.unwrap();
    vm
}

#[tokio::test]
async fn endpoints_come_into_their_namespaces_and_go_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let ground = Ground::new(dir.path());
    ground.run("host", "ip link add lan type bridge && ip addr add 10.50.0.1/24 dev lan && \
        ip addr add fd50::1/64 dev lan nodad && ip addr add 203.0.113.1/32 dev lan && ip link set lan up");
    let tap = |name: &str| tap(dir.path(), &ground, name);
    let vm = started(dir.path(), false).await;
    let devices = "ip -o link | cut -d: -f2 | cut -d@ -f1 | sort | tr -d \"\\n\"";
    assert_eq!(sh(&vm, devices).await, " lo");

    // Two in one namespace and one in another; the second has no default route of its own.
    vm.add_net_ns("POD-1").await.unwrap();
    vm.add_net_ns("pod-2").await.unwrap();
    let mut a = endpoint("Aa", 2, tap("tap-a"));
    a.described.encap_overhead = 50;
    a.extra.addresses = vec!["fd50::2/64".to_owned()];
    a.described.gateway_address = "203.0.113.1,fd50::1".to_owned();
    let mut b = endpoint("Bb", 3, tap("tap-b"));
    b.extra.name = "second".to_owned();
    b.extra.routes = vec![AdapterRoute {
        destination: "10.60.0.0/16".to_owned(),
        gateway: "10.50.0.1".to_owned(),
        metric: 9,
    }];
    let c = endpoint("Aa", 4, tap("tap-c"));
    vm.add_endpoints_to_ns("pod-1", &[a.clone(), b.clone()]).await.unwrap();
    let same_mac =
        Endpoint { described: HnsEndpoint { id: "x".into(), ..a.described.clone() }, ..c.clone() };
    let error = vm.add_endpoints_to_ns("pod-2", &[c.clone(), same_mac]).await.unwrap_err();
    assert!(chain(&error).contains("is that of endpoint aa"), "{}", chain(&error));
    vm.add_endpoints_to_ns("POD-2", std::slice::from_ref(&c)).await.unwrap();

    assert_eq!(sh(&vm, devices).await, " lo", "they are all in their namespaces");
    assert_eq!(inside(&vm, "pod-1", devices).await, " eth0 lo second");
    assert_eq!(inside(&vm, "pod-2", devices).await, " eth0 lo");
    assert!(inside(&vm, "pod-1", "ip -o link show eth0").await.contains("mtu 1450"));
    let routes = inside(&vm, "pod-1", "ip route; ip rule").await;
    for part in [
        "default via 203.0.113.1 dev eth0",
        "10.60.0.0/16 via 10.50.0.1 dev second",
        "from 10.50.0.3 lookup",
    ] {
        assert!(routes.contains(part), "{part}: {routes}");
    }
    for (namespace, to) in [
        ("pod-1", "10.50.0.1"),
        ("pod-1", "203.0.113.1"),
        ("pod-2", "10.50.0.1"),
        ("pod-2", "10.50.0.2"),
    ] {
        inside(&vm, namespace, &format!("ping -c1 -W5 {to}")).await;
    }
    inside(&vm, "pod-1", "ping -6 -c1 -W5 fd50::1").await;

    // What the guest refuses leaves neither a card nor half a namespace, and what was there goes on.
    vm.add_net_ns("pod-3").await.unwrap();
    let mut bad = endpoint("bad", 6, tap("tap-f"));
    bad.described.ip_address = "10.50.0.300".to_owned();
    let error =
        vm.add_endpoints_to_ns("pod-3", &[endpoint("ok", 5, tap("tap-e")), bad]).await.unwrap_err();
    assert!(chain(&error).contains("the address \"10.50.0.300\" is wrong"), "{}", chain(&error));
    assert_eq!(sh(&vm, devices).await, " lo");
    assert_eq!(sh(&vm, "ls /run/networks | tr \"\\n\" \" \"").await, "pod-1 pod-2 ");

    // Without an address a DHCP server is asked.
    let lease = |address: &str| {
        let conf = dir.path().join("udhcpd.conf");
        let lines = format!(
            "start {address}\nend {address}\ninterface lan\nopt subnet 255.255.255.0\n\
             opt router 10.50.0.1\nopt dns 10.50.0.53\nopt lease {LEASE}\nlease_file {}\npidfile {}\n",
            dir.path().join("leases").display(),
            dir.path().join("pid").display(),
        );
        std::fs::write(&conf, lines).unwrap();
        ground.serve(["udhcpd", "-f", conf.to_str().unwrap()])
    };
    let server = lease("10.50.0.100");
    let mut asks = endpoint("dhcp", 7, tap("tap-g"));
    asks.described.ip_address = String::new();
    asks.described.gateway_address = String::new();
    vm.add_endpoints_to_ns("pod-3", &[asks.clone()]).await.unwrap();
    let seen = inside(&vm, "pod-3", "ip -4 -o addr show dev eth0; ip route").await;
    assert!(seen.contains("10.50.0.100/24") && seen.contains("default via 10.50.0.1"), "{seen}");
    assert_eq!(sh(&vm, "cat /run/networks/pod-3/resolv.conf").await, "nameserver 10.50.0.53\n");
    // It is renewed while its server is there: what else was made of it stays. Then it is over, and another
    // is asked for.
    inside(&vm, "pod-3", "ip route add 10.99.0.0/16 via 10.50.0.1").await;
    tokio::time::sleep(Duration::from_secs(LEASE + LEASE / 4)).await;
    let seen = inside(&vm, "pod-3", "ip -4 -o addr show dev eth0; ip route").await;
    assert!(seen.contains("10.50.0.100/24") && seen.contains("10.99.0.0/16"), "{seen}");
    drop(server);
    let server = lease("10.50.0.101");
    let begun = Instant::now();
    let seen = loop {
        let seen = inside(&vm, "pod-3", "ip -4 -o addr show dev eth0; ip route").await;
        if seen.contains("10.50.0.101/24") && seen.contains("default via") {
            break seen;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{seen}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(!seen.contains("10.50.0.100") && !seen.contains("10.99.0.0/16"), "{seen}");
    drop(server);

    // Nobody leases anything: told, and nothing is left.
    asks.described.id = "nobody".to_owned();
    asks.described.mac_address = "02-00-00-00-50-08".to_owned();
    asks.carrier = Carrier::Tap(tap("tap-h"));
    let error = vm.add_endpoints_to_ns("pod-3", &[asks]).await.unwrap_err();
    assert!(chain(&error).contains("no DHCP server leased an address"), "{}", chain(&error));
    assert_eq!(inside(&vm, "pod-3", devices).await, " eth0 lo");

    // Out in any order and any case, and in again with the same ids.
    for round in 0..2 {
        vm.remove_endpoints_from_ns(
            "Pod-1",
            &[HnsEndpoint { id: "aA".into(), ..HnsEndpoint::default() }],
        )
        .await
        .unwrap();
        assert_eq!(inside(&vm, "pod-1", devices).await, " lo second");
        let again = Endpoint { carrier: Carrier::Tap(tap(&format!("tap-r{round}"))), ..a.clone() };
        vm.add_endpoints_to_ns("pod-1", &[again]).await.unwrap();
        assert_eq!(inside(&vm, "pod-1", devices).await, " eth0 lo second");
    }
    for id in ["POD-1", "pod-2", "pod-3"] {
        vm.remove_net_ns(id).await.unwrap();
    }
    assert_eq!(sh(&vm, devices).await, " lo");
    assert_eq!(sh(&vm, "ls /run/networks").await, "");
    vm.close().await.unwrap();
    drop((a, b, c));
    assert!(!ground.run("host", "ip -o link").contains("tap-"), "taps are left");
}

/// A card that a switch in user space serves: carried both ways, taken away, and outlived when it dies.
#[tokio::test]
async fn a_card_that_a_vhost_user_server_carries_comes_and_goes_and_its_death_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let ground = Ground::new(dir.path());
    ground.run(
        "host",
        "ip link add lan type bridge && ip addr add 10.50.0.1/24 dev lan && ip link set lan up",
    );
    let vm = started(dir.path(), true).await;
    vm.add_net_ns("pod").await.unwrap();
    let devices = "ip -o link | cut -d: -f2 | cut -d@ -f1 | sort | tr -d \"\\n\"";

    let added = async |number: u8| {
        let socket = dir.path().join(format!("switch-{number}"));
        let tap = tap(dir.path(), &ground, &format!("tap-{number}"));
        let switch = Switch::listen(&socket, Arc::into_inner(tap).unwrap());
        // As the host's half attaches one of the eight kinds.
        let socket = socket.to_str().unwrap().to_owned();
        let kind = HostEndpoint::VhostUser { interface: Interface::default(), socket };
        let HostCarrier::VhostUser(server) = attach(kind, 1500).unwrap().carrier else {
            panic!("another carrier")
        };
        let card = Endpoint {
            carrier: Carrier::VhostUser(Arc::new(server)),
            ..endpoint(&format!("card-{number}"), number, Arc::new(nothing()))
        };
        vm.add_endpoints_to_ns("pod", std::slice::from_ref(&card)).await.unwrap();
        (switch, card)
    };
    let removed =
        async |card: Endpoint| vm.remove_endpoints_from_ns("pod", &[card.described]).await;

    let (switch, card) = added(2).await;
    inside(&vm, "pod", "ping -c3 -i0.2 -W5 10.50.0.1").await;
    ground.run("host", "ping -c3 -i0.2 -W5 10.50.0.2");
    // Enough for every buffer of the rings to be used many times, both ways.
    let served = dir.path().join("served");
    std::fs::create_dir(&served).unwrap();
    ground.run("host", &format!("head -c 4000000 /dev/urandom >{}/bytes", served.display()));
    let server = ground.serve_files("10.50.0.1:8000".parse().unwrap(), &served);
    let get = "mkdir /run/www && wget -q -O /run/www/bytes http://10.50.0.1:8000/bytes && \
               httpd -p 8000 -h /run/www";
    inside(&vm, "pod", get).await;
    drop(server);
    let back = format!(
        "busybox wget -q -O - http://10.50.0.2:8000/bytes | cmp - {}/bytes",
        served.display()
    );
    ground.run("host", &back);
    let frames = switch.frames();
    assert!(frames.iter().all(|frames| *frames > 2000), "{frames:?}");
    removed(card).await.unwrap();
    switch.end();
    assert_eq!(sh(&vm, "ls /run/networks").await, "");

    let (switch, card) = added(3).await;
    ground.run("host", "ping -c1 -W5 10.50.0.3");
    switch.hang_up();
    assert!(!ground.output("host", "ping -c1 -W1 10.50.0.3").status.success());
    removed(card).await.unwrap();
    let (switch, card) = added(4).await;
    ground.run("host", "ping -c1 -W5 10.50.0.4");
    removed(card).await.unwrap();
    switch.end();
    vm.remove_net_ns("pod").await.unwrap();
    assert_eq!(sh(&vm, devices).await, " lo");
    vm.close().await.unwrap();
    assert!(!ground.run("host", "ip -o link").contains("tap-"), "taps are left");
}

fn nothing() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}
