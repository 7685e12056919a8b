//! What this machine cannot prove, in a machine that can: devices handed over by VFIO behind a real
//! IOMMU, a network by a kind of device that its kernel lacks, control groups of version 2.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use coracle_tests::lab::Lab;

/// Two devices: one a driver works with, one nobody does. Of the board's own, the disk controller
/// and the SMBus are in one IOMMU group.
const DEVICES: [&str; 2] = ["edu,addr=05.0", "e1000,addr=06.0,romfile="];

/// Prints who holds each device, marks the places, and does with devices what a user would.
const SCRIPT: &str = r#"
load vfio-pci; load vfio_iommu_type1; load e1000; load ahci
drivers() {
    for device in 05.0 06.0 1f.2 1f.3; do
        driver=$(readlink /sys/bus/pci/devices/0000:00:$device/driver || true)
        echo "$1 $device ${driver##*/}"
    done
}
drivers before
coracle run --detach --accel tcg --memory 256m --physical-memory --name lab -- sleep 100000
coracle device add lab 0000:00:06.0
coracle device add lab 00:05.0
drivers during
vm=$(coracle inspect -f vm.pid lab)
echo "group: $(sed 's/[.][0-9a-f]*$/.HASH/' /proc/$vm/cgroup)"
echo "delegated: $(cat /sys/fs/cgroup/cgroup.subtree_control /sys/fs/cgroup/coracle/cgroup.subtree_control | tr '\n' ' ')"
coracle device ls lab --format json
coracle exec lab -- sh -c 'cd /sys/bus/pci/devices/; for d in *; do echo "guest $d $(cat $d/device)"; done'
echo "refused: $(coracle device add lab 0000:00:1f.3 || echo "status $?")"
echo "unknown: $(coracle device add lab 0000:00:1e.0 || echo "status $?")"
coracle device rm lab 0000:00:06.0
drivers after-rm

# An ipvlan device, in a namespace that somebody prepared.
for module in tun veth ipvlan sch_ingress cls_u32 act_mirred; do load $module; done
ip netns add prepared
ip link add outer type veth peer name inner
ip addr add 10.44.0.1/24 dev outer
ip link set outer up
ip link set inner up
ip link add ipv0 link inner netns prepared type ipvlan mode l2
ip -n prepared addr add 10.44.0.2/24 dev ipv0
ip -n prepared link set ipv0 up
coracle net add lab ns:/run/netns/prepared
coracle exec lab -- ip -4 -o addr show dev ipv0
echo "pings: $(coracle exec lab -- ping -c3 -W10 10.44.0.1 | grep received)"
coracle net rm lab ns:/run/netns/prepared
echo "queues left: $(ip netns exec prepared tc qdisc | grep -c ingress || true)"
coracle rm --force lab
drivers at-last
echo "groups left: $(find /sys/fs/cgroup/coracle -mindepth 1 -type d | wc -l)"
ls /dev/vfio
"#;

#[test]
fn devices_of_the_host_go_to_the_guest_and_back_to_their_drivers() {
    let said = Lab::with(&DEVICES).run(SCRIPT, Duration::from_secs(280));
    let has = |line: &str| assert!(said.lines().any(|said| said == line), "no {line:?} in {said}");
    for line in ["before 05.0 ", "before 06.0 e1000", "before 1f.2 ahci"] {
        has(line);
    }
    for line in ["during 05.0 vfio-pci", "during 06.0 vfio-pci", "during 1f.2 ahci"] {
        has(line);
    }
    // Its processes are in a group of their own, below one whose controller was delegated.
    has("group: 0::/coracle/lab.HASH");
    has("delegated: cpu cpu ");
    has("groups left: 0");
    // The guest sees each where `ls` says it is.
    let list = said.lines().find(|line| line.starts_with('[')).unwrap();
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    for (number, source, id) in [(0, "0000:00:06.0", "0x100e"), (1, "00:05.0", "0x11e8")] {
        assert_eq!(list[number]["source"], source);
        has(&format!("guest {} {id}", list[number]["slot"].as_str().unwrap()));
    }
    // A group that shares memory with a device at work is not handed over.
    let refused = "0000:00:1f.3 shares IOMMU group";
    assert!(said.contains(refused) && said.contains("0000:00:1f.2 (ahci)"), "{said}");
    assert!(said.contains("this host has no PCI device 0000:00:1e.0"), "{said}");
    assert_eq!(said.matches("status 125").count(), 2, "{said}");
    for line in ["after-rm 05.0 vfio-pci", "after-rm 06.0 e1000"] {
        has(line);
    }
    // The network by ipvlan: the address is the prepared one, packets go both ways, nothing is left.
    assert!(said.contains("inet 10.44.0.2/24"), "{said}");
    assert!(said.contains("pings: 3 packets transmitted, 3 packets received"), "{said}");
    has("queues left: 0");
    // What was left in the VM at its end goes back too; nothing of VFIO is left but its door.
    for line in ["at-last 05.0 ", "at-last 06.0 e1000", "at-last 1f.2 ahci", "vfio"] {
        has(line);
    }
    assert!(said.trim_end().ends_with("vfio"), "{said}");
}
