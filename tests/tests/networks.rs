//! Networks of sandboxes, by the command line, on real VMs, in network namespaces of the tests' own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use coracle_tests::Place;
use coracle_tests::detached::Detached;
use coracle_tests::place::text;
use serde_json::Value;

/// Fetches a page with a time-out of our own: busybox's does not survive its.
fn fetch(from: &Detached<'_>, url: &str) -> Option<String> {
    let output = from.output(&["exec", "@", "--", "timeout", "4", "wget", "-q", "-O", "-", url]);
    output.status.success().then(|| text(&output.stdout))
}

fn fetch_size(from: &Detached<'_>, url: &str) -> usize {
    let command = format!("timeout 60 wget -q -O - {url} | wc -c");
    from.sh(&command).trim().parse().unwrap()
}

fn fetch_from(place: &Place, side: &str, url: &str) -> Option<String> {
    let output = place.ground().output(side, &format!("curl -s -g -m 4 {url}"));
    output.status.success().then(|| text(&output.stdout))
}

fn pings(from: &Detached<'_>, to: &str) -> bool {
    from.output(&["exec", "@", "--", "ping", "-c1", "-W2", to]).status.success()
}

/// A sandbox that serves its own host name at port 80.
fn server<'a>(place: &'a Place, name: &str, options: &[&str]) -> Detached<'a> {
    let serve = ["--", "httpd", "-f", "-p", "80", "-h", "/etc"];
    let name = format!("--name={name}");
    let server = Detached::start(place, &[&[name.as_str()], options, &serve].concat());
    // Its program was started, which is not to say that it listens.
    server.sh("for n in $(seq 100); do wget -q -O /dev/null http://127.0.0.1/hostname && exit; \
         sleep 0.1; done; exit 1");
    server
}

fn idle<'a>(place: &'a Place, name: &str, options: &[&str]) -> Detached<'a> {
    Detached::start(place, &[&[format!("--name={name}").as_str()], options].concat())
}

#[test]
fn sandboxes_reach_each_other_and_the_world_and_are_reached_as_far_as_they_may() {
    let place = Place::networked();
    let web = server(
        &place,
        "web",
        &[
            "-p",
            "127.0.0.1:8080:80",
            "-p",
            "8081:80",
            "--network-alias",
            "www",
            "--hostname",
            "site",
        ],
    );
    let cli = idle(&place, "cli", &[]);
    let shut = idle(&place, "shut", &["--egress", "none"]);
    let some = idle(&place, "some", &["--egress", "10.89.0.2,192.0.2.2"]);

    // Published ports: for this host by loopback and by its address, for others by its address alone.
    for (side, url, there) in [
        ("host", "http://127.0.0.1:8080/hostname", true),
        ("host", "http://127.0.0.1:8081/hostname", true),
        ("host", "http://[::1]:8081/hostname", true),
        ("host", "http://192.0.2.1:8081/hostname", true),
        ("world", "http://192.0.2.1:8081/hostname", true),
        ("world", "http://[fd02::1]:8081/hostname", true),
        ("world", "http://192.0.2.1:8080/hostname", false),
    ] {
        let page = fetch_from(&place, side, url);
        assert_eq!(page.as_deref(), there.then_some("site\n"), "{side} {url}");
    }
    // A sandbox reaches the port of the host that leads to another, and to itself.
    assert_eq!(fetch(&cli, "http://192.0.2.1:8081/hostname").as_deref(), Some("site\n"));
    assert_eq!(fetch(&web, "http://192.0.2.1:8081/hostname").as_deref(), Some("site\n"));

    // Names, with and without the network's, and what is in a container's files.
    for name in ["web", "www", "web.default"] {
        assert_eq!(
            fetch(&cli, &format!("http://{name}/hostname")).as_deref(),
            Some("site\n"),
            "{name}"
        );
    }
    assert_eq!(cli.sh("cat /etc/resolv.conf"), "nameserver 10.89.0.1\n");
    assert!(cli.sh("cat /etc/hosts").ends_with("10.89.0.3\tcli\n"));
    assert!(!pings(&cli, "nobody"));

    // The world is reached with the host's address, and may not begin anything itself.
    assert!(pings(&cli, "192.0.2.2"));
    place.ground().run("world", "ip route add 10.89.0.0/24 via 192.0.2.1");
    assert!(pings(&cli, "192.0.2.2"), "answers come back, by whichever route");
    assert_eq!(fetch_from(&place, "world", "http://10.89.0.2/hostname"), None);
    assert!(!place.ground().output("world", "ping -c1 -W2 10.89.0.3").status.success());

    // Egress: none and some.
    assert!(!pings(&shut, "192.0.2.2") && !pings(&shut, "web") && !pings(&shut, "10.89.0.1"));
    assert!(fetch(&shut, "http://10.89.0.2/hostname").is_none());
    assert!(pings(&cli, "shut"), "who is kept in may be talked to, and answers");
    assert!(pings(&some, "192.0.2.2") && !pings(&some, "192.0.2.3"));
    assert!(pings(&some, "web") && !pings(&some, "cli"));
    let told = shut.output(&["exec", "@", "--", "nslookup", "example.org"]);
    assert!(text(&told.stdout).contains("REFUSED"), "{}", text(&told.stdout));

    // A port or address that another has is told by name, and nothing is left of the asking.
    let taken = place.output(["run", "-d", "--accel=tcg", "--name=two", "-p", "8080:80"]);
    assert_eq!(taken.status.code(), Some(125));
    let said = text(&taken.stderr);
    assert!(said.contains("port 8080/tcp of 127.0.0.1 is taken by sandbox web"), "{said}");
    assert!(place.output(["inspect", "two"]).status.code() == Some(125));

    // What is told of networks, and what they have carried.
    let all: Value = serde_json::from_str(&cli.run(&["net", "ls", "--format=json"])).unwrap();
    assert_eq!(all[0]["leases"].as_object().unwrap().len(), 4);
    let view: Value = serde_json::from_str(&web.run(&["inspect", "@"])).unwrap();
    assert_eq!(view["networks"][0]["published"][0], "127.0.0.1:8080:80/tcp");
    let table = some.run(&["net", "ls", "@"]);
    assert!(table.contains("default") && table.contains("10.89.0.2/32,192.0.2.2/32"), "{table}");
    let one: Value = serde_json::from_str(&web.run(&["net", "inspect", "default"])).unwrap();
    assert_eq!(one["subnets"][0], "10.89.0.0/24");
    let used: Value = serde_json::from_str(&web.run(&["stats", "@", "--format=json"])).unwrap();
    let card = &used[0]["networks"][0];
    assert!(
        card["rx_packets"].as_u64() > Some(5) && card["tx_bytes"].as_u64() > Some(500),
        "{card}"
    );

    // The servers of names and ports go with the last one who needs them.
    drop((web, cli, shut, some));
    place.assert_nothing_left();
}

#[test]
fn networks_come_and_go_while_a_sandbox_runs() {
    let place = Place::networked();
    let six = "six,subnet=fd07::/64";
    let a = idle(&place, "a", &["--net", six]);
    let b = server(
        &place,
        "b",
        &["--net", "six", "-p", "[::1]:8080:80", "--rate-out", "200k", "--dns", "192.0.2.53"],
    );

    assert_eq!(b.sh("cat /etc/resolv.conf"), "nameserver 192.0.2.53\n");

    // A network of IPv6 alone.
    assert_eq!(a.sh("ip -4 -o addr show dev eth0"), "");
    assert!(pings(&a, "b"));
    assert_eq!(fetch(&a, "http://b/hostname").as_deref(), Some("b\n"));
    assert_eq!(fetch_from(&place, "host", "http://[::1]:8080/hostname").as_deref(), Some("b\n"));
    assert!(pings(&a, "fd02::2"), "the world, through NAT");

    // No faster than it may: 1 MiB at 200 KiB a second, less what may come at once.
    b.sh("head -c 1048576 /dev/zero > /etc/large");
    let began = std::time::Instant::now();
    assert_eq!(fetch_size(&a, "http://b/large"), 1 << 20);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(2500), "1 MiB took {took:?}");

    // Seven more, the second with another MTU: eight cards, each its own network.
    a.run(&["net", "add", "@", "small,mtu=1400"]);
    assert!(a.sh("cat /sys/class/net/eth1/mtu").starts_with("1400"));
    // Bit 17 (VIRTIO_NET_F_CTRL_VQ): a guest has nothing to ask of its card.
    assert_eq!(a.sh("cut -c18 /sys/class/net/eth1/device/features"), "0\n");
    for n in 2..8 {
        a.run(&["net", "add", "@", &format!("n{n}")]);
    }
    let names = "ls /sys/class/net | sort | tr '\\n' ' '";
    assert_eq!(a.sh(names), "eth0 eth1 eth2 eth3 eth4 eth5 eth6 eth7 lo ");
    let listed = a.run(&["net", "ls", "@"]);
    assert_eq!(listed.lines().count(), 9, "{listed}");
    // Each network is reached by its own card, and none leads to another.
    b.run(&["net", "add", "@", "n5"]);
    let address = a.sh("nslookup b.n5 | sed -n 's/^Address: //p' | tail -1");
    let route = a.sh(&format!("ip route get {}", address.trim()));
    assert!(route.contains("dev eth5"), "{address}: {route}");
    assert!(a.refused(&["net", "add", "@", "n5"]).contains("is on network n5 already"));
    assert!(a.refused(&["net", "add", "@", "n9,mtu=1"]).contains("576"));
    assert!(a.refused(&["net", "rm", "@", "nowhere"]).contains("is not on network nowhere"));
    // Out, and in again under the same name.
    for n in ["small", "n2", "n3", "n4", "n5", "n6", "n7"] {
        a.run(&["net", "rm", "@", n]);
    }
    assert_eq!(a.sh(names), "eth0 lo ");
    a.run(&["net", "add", "@", "SMALL"]);
    a.run(&["net", "add", "@", "small", "--mac", "02:00:00:00:00:07"]);
    assert!(a.sh("cat /sys/class/net/eth2/address").starts_with("02:00:00:00:00:07"));
    assert!(pings(&a, "b"), "what came and went left the first network alone");
    drop((a, b));
    place.assert_nothing_left();
}

#[test]
fn no_network_is_lo_alone_and_what_cannot_be_is_refused() {
    let place = Place::networked();
    let run = |options: &[&str]| {
        place.output(
            [&["run", "--accel=tcg"][..], options, &["--", "ls", "/sys/class/net"]].concat(),
        )
    };
    let none = run(&["--net", "none"]);
    assert_eq!(text(&none.stdout), "lo\n", "{}", text(&none.stderr));
    for (options, why) in [
        (&["--net", "none", "-p", "80:80"][..], "no ports to publish"),
        (&["--net", "host"], "the host's own network"),
        (&["--net", "ns:/no/such/namespace"], "/no/such/namespace"),
        (&["--net", "ns:/proc/self/ns/net"], "it is this host's own"),
        (&["--net", "cni:nowhere"], "CNI network nowhere"),
        (&["-p", "80"], "[IP:]HOST:GUEST"),
        (&["--egress", "everywhere"], "none"),
        (&["--mac", "01:00:00:00:00:00"], "group"),
        (&["--net", "user", "--egress", "10.0.0.0/8"], "all` and `none` only"),
    ] {
        let refused = run(options);
        assert_eq!(refused.status.code(), Some(125), "{options:?}: {}", text(&refused.stdout));
        let said = text(&refused.stderr);
        assert!(said.contains(why), "{options:?}: {said}");
    }
    // QEMU's own network: no right on the host is needed, and it reaches this host.
    let server = place.ground().serve_files("127.0.0.1:8090".parse().unwrap(), "/etc".as_ref());
    let user = place.output([
        "run",
        "--accel=tcg",
        "--net",
        "user",
        "--",
        "timeout",
        "20",
        "wget",
        "-q",
        "-O",
        "-",
        "http://10.0.2.2:8090/debian_version",
    ]);
    let shut = place.output([
        "run",
        "--accel=tcg",
        "--net",
        "user",
        "--egress",
        "none",
        "--",
        "timeout",
        "4",
        "wget",
        "-q",
        "-O",
        "-",
        "http://10.0.2.2:8090/debian_version",
    ]);
    drop(server);
    let version = fs::read_to_string("/etc/debian_version").unwrap();
    assert_eq!(text(&user.stdout), version, "{}", text(&user.stderr));
    assert_eq!(text(&shut.stdout), "");
    place.assert_nothing_left();
}

#[test]
fn cni_plugins_and_prepared_namespaces_give_a_sandbox_its_network() {
    let place = Place::networked();
    let folder = tempfile::tempdir().unwrap();
    let conf = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge", "bridge": "cnilab", "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": folder.path().join("leases"),
                "ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
            },
            "dns": {"nameservers": ["10.22.0.1"]}
        }]
    });
    fs::write(folder.path().join("lab.conflist"), conf.to_string()).unwrap();
    let run = |net: &str, command: &str| {
        let mut run =
            place.coracle(["run", "--accel=tcg", "--net", net, "--", "sh", "-c", command]);
        run.env("CNI_CONF_DIR", folder.path()).output().unwrap()
    };
    let look = "ip -4 -o addr show dev eth0; ip route; cat /etc/resolv.conf; ping -c1 -W4 10.22.0.1 | tail -2";
    let cni = run("cni:lab", look);
    let said = text(&cni.stdout);
    assert!(cni.status.success(), "{said}{}", text(&cni.stderr));
    for part in
        ["10.22.0.2/24", "default via 10.22.0.1", "nameserver 10.22.0.1", "1 packets received"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let leases = || {
        fs::read_dir(folder.path().join("leases/lab"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
            .count()
    };
    assert_eq!(leases(), 0, "the address was given back");
    place.ground().run("host", "ip link del cnilab");

    // A namespace that somebody else prepared is used as it is, and left as it was.
    let prepared = folder.path().join("prepared");
    fs::write(&prepared, "").unwrap();
    let made = Command::new("nsenter")
        .arg(format!("--net={}", place.root().join("net-host").display()))
        .args(["unshare", &format!("--net={}", prepared.display()), "true"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let inside = |command: &str| {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", prepared.display()))
            .args(["sh", "-c", command])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    place.ground().run(
        "host",
        &format!(
            "ip link add outer type veth peer name inner && ip addr add 10.33.0.1/24 dev outer && \
         ip link set outer up && ip link set inner netns {}",
            prepared.display()
        ),
    );
    inside(
        "ip link set lo up; ip link set inner mtu 1400; ip addr add 10.33.0.2/24 dev inner; \
            ip link set inner up; ip route add default via 10.33.0.1; \
            ip neigh add 10.33.0.77 lladdr 02:00:00:00:00:77 dev inner nud permanent",
    );
    let seen = || inside("ip -o link; ip -o addr | sed 's/ tentative//'; ip route; tc qdisc");
    let before = seen();
    let source = format!("ns:{}", prepared.display());
    let ns = run(
        &source,
        "ip -4 -o addr show dev inner; ip neigh; cat /sys/class/net/inner/mtu; \
        ping -c1 -W4 10.33.0.1 | tail -2",
    );
    let said = text(&ns.stdout);
    for part in ["10.33.0.2/24", "02:00:00:00:00:77", "1400", "1 packets received"] {
        assert!(said.contains(part), "{part}: {said}{}", text(&ns.stderr));
    }
    assert_eq!(seen(), before);

    // What is left when all of it is killed is cleaned up by whoever takes it up.
    let mut detached =
        place.coracle(["run", "-d", "--accel=tcg", "--name=gone", "--net", "cni:lab"]);
    let started = detached.env("CNI_CONF_DIR", folder.path()).output().unwrap();
    assert!(started.status.success(), "{}", text(&started.stderr));
    assert_eq!(leases(), 1);
    let gone = Detached::named(&place, "gone");
    gone.kill_everything();
    let mut recover = place.coracle(["recover"]);
    assert!(recover.env("CNI_CONF_DIR", folder.path()).status().unwrap().success());
    assert_eq!(leases(), 0);
    gone.run(&["rm", "@"]);
    // The bridge plugin turns forwarding on and leaves it so.
    let undo = "ip link del cnilab; ip link del outer; echo 0 > /proc/sys/net/ipv4/ip_forward";
    place.ground().run("host", undo);
    assert!(Command::new("umount").arg(&prepared).status().unwrap().success());
    place.assert_nothing_left();
}

#[test]
fn a_network_outlives_the_monitor_and_goes_with_the_vm() {
    let place = Place::networked();
    let stays = idle(&place, "stays", &[]);
    let gone = server(&place, "gone", &["-p", "127.0.0.1:8080:80"]);
    let answers = || fetch_from(&place, "host", "http://127.0.0.1:8080/hostname");
    // Its port and its name answer while nobody looks after it, and when another does.
    gone.kill_runtime();
    assert_eq!(answers().as_deref(), Some("gone\n"));
    assert_eq!(gone.monitor(), None);
    assert_eq!(fetch(&stays, "http://gone/hostname").as_deref(), Some("gone\n"));
    gone.sh("true");
    assert!(gone.monitor().is_some());
    assert_eq!(answers().as_deref(), Some("gone\n"));

    // With its VM they go, as soon as it is taken up: they are for others then.
    gone.kill_everything();
    assert!(place.output(["recover", "gone"]).status.success());
    let network: Value = serde_json::from_str(&stays.run(&["net", "inspect", "default"])).unwrap();
    assert_eq!(network["leases"].as_object().unwrap().len(), 1);
    gone.run(&["rm", "@"]);
    let again = server(&place, "gone", &["-p", "127.0.0.1:8080:80"]);
    assert_eq!(answers().as_deref(), Some("gone\n"));
    assert_eq!(fetch(&stays, "http://gone/hostname").as_deref(), Some("gone\n"));
    again.run(&["rm", "-f", "@"]);
    stays.kill_everything();
    place.output(["recover"]);
    stays.run(&["rm", "@"]);
    drop((stays, gone, again));
    place.assert_nothing_left();
}
