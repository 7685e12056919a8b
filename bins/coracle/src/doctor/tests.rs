//! Hosts made up, and what the doctor says of them.

use snapbox::{assert_data_eq, str};

use coracle_vmm::accel::Kvm;

use super::facts::{CgroupKind, Cgroups, Device, Facts, Guest, Memory, Qemu, Space};
use super::probe::{available_memory, cgroup_kind, qemu_version};
use super::*;

/// A host on which all is well.
fn healthy() -> Facts {
    Facts {
        kvm: Kvm::Fast { micros: 520 },
        qemu: Ok(Qemu::Version(7, 2)),
        guest: Guest::Ready {
            release: "6.1.0-7-amd64".into(),
            folder: "/var/lib/coracle/guest".into(),
        },
        vsock: Device::Usable,
        tun: Device::Usable,
        cgroups: Ok(Cgroups { kind: CgroupKind::V2, writable: true }),
        space: Ok(Space { folder: "/var/lib/coracle".into(), free: 80 << 30 }),
        memory: Ok(Memory { available: 16_000 }),
        virtiofsd: Some("/usr/libexec/virtiofsd".into()),
        has_nft: true,
        is_root: true,
    }
}

fn verdict_of(facts: &Facts) -> State {
    verdict(&judge::judge(facts))
}

fn check_of(facts: &Facts, name: &str) -> Check {
    judge::judge(facts).into_iter().find(|check| check.name == name).unwrap()
}

#[test]
fn a_healthy_host_is_told_in_a_line_per_check() {
    assert_data_eq!(
        table::table(&judge::judge(&healthy())),
        str![[r#"
ok      qemu       QEMU 7.2
ok      kvm        KVM runs guest code at hardware speed (520 us)
ok      guest      Linux 6.1.0-7-amd64 in /var/lib/coracle/guest
ok      memory     16000 MiB available
ok      disk       81920 MiB free for /var/lib/coracle
ok      cgroups    cgroup v2, writable
ok      tun        /dev/net/tun opens
ok      nft        nft is installed
ok      vsock      /dev/vhost-vsock opens
ok      virtiofsd  /usr/libexec/virtiofsd

all is well

"#]]
    );
    assert_eq!(verdict_of(&healthy()).exit_code(), 0);
}

#[test]
fn what_is_not_well_comes_with_its_reason_and_its_remedy() {
    let facts = Facts {
        kvm: Kvm::Slow { percent: 2 },
        guest: Guest::Absent { folder: "/var/lib/coracle/guest".into() },
        tun: Device::Absent,
        virtiofsd: None,
        has_nft: false,
        vsock: Device::Absent,
        memory: Err("/proc/meminfo has no MemAvailable".into()),
        ..healthy()
    };
    assert_data_eq!(
        table::table(&judge::judge(&facts)),
        str![[r#"
ok      qemu       QEMU 7.2
warn    kvm        /dev/kvm opens but emulates guest code: a trial got 2 % done in 25 ms
                   why: without it guest code is emulated (TCG): every feature, at a fraction of the speed
                   fix: nothing to mend from inside; use a host with hardware virtualization
FAIL    guest      no guest files in /var/lib/coracle/guest
                   why: the kernel, the initrd and the built-in root every VM boots from
                   fix: make setup, or coracle guest build
unknown memory     cannot tell: /proc/meminfo has no MemAvailable
                   why: a VM gets 1 GiB unless told otherwise
ok      disk       81920 MiB free for /var/lib/coracle
ok      cgroups    cgroup v2, writable
warn    tun        there is no /dev/net/tun
                   why: a VM's network interfaces are taps
                   fix: sudo modprobe tun
warn    nft        nft is not installed
                   why: private networks are made of its rules; without it there is `--net user`
                   fix: apt-get install nftables
ok      vsock      no /dev/vhost-vsock, and none is needed
ok      virtiofsd  not installed, and not needed yet

no VM will start until what is marked `FAIL` is mended

"#]]
    );
    assert_eq!(verdict_of(&facts).exit_code(), 2);
}

#[test]
fn a_host_without_kvm_works_with_a_warning() {
    for kvm in [Kvm::Missing, Kvm::Forbidden, Kvm::Slow { percent: 2 }] {
        let facts = Facts { kvm, ..healthy() };
        assert_eq!(verdict_of(&facts), State::Warn);
        assert!(check_of(&facts, "kvm").fix.is_some());
    }
}

#[test]
fn without_qemu_or_guest_files_no_vm_starts() {
    let no_qemu = Facts { qemu: Ok(Qemu::Absent), ..healthy() };
    assert_eq!(verdict_of(&no_qemu), State::Fail);
    assert_eq!(check_of(&no_qemu, "qemu").fix.as_deref(), Some("apt-get install qemu-system-x86"));
    let broken = Guest::Broken { reason: "guest file vmlinux is missing".into() };
    assert_eq!(verdict_of(&Facts { guest: broken, ..healthy() }), State::Fail);
}

#[test]
fn a_probe_that_failed_leaves_no_verdict_unless_something_else_is_blocking() {
    let unknown = Facts { space: Err("I/O error".into()), ..healthy() };
    assert_eq!(verdict_of(&unknown).exit_code(), 125);
    let blocked = Facts { qemu: Ok(Qemu::Absent), ..unknown };
    assert_eq!(verdict_of(&blocked).exit_code(), 2);
}

#[test]
fn optional_things_that_are_absent_are_no_warning() {
    let facts = Facts { vsock: Device::Absent, virtiofsd: None, ..healthy() };
    assert_eq!(verdict_of(&facts), State::Ok);
}

#[test]
fn space_and_qemu_versions_have_two_thresholds() {
    let space = |mib: u64| {
        let space = Space { folder: "/d".into(), free: mib << 20 };
        check_of(&Facts { space: Ok(space), ..healthy() }, "disk").state
    };
    assert_eq!([space(511), space(512), space(4096)], [State::Fail, State::Warn, State::Ok]);
    let qemu = |major, minor| {
        let qemu = Ok(Qemu::Version(major, minor));
        check_of(&Facts { qemu, ..healthy() }, "qemu").state
    };
    assert_eq!([qemu(5, 2), qemu(6, 0), qemu(7, 2)], [State::Fail, State::Warn, State::Ok]);
    assert_eq!(qemu(10, 0), State::Ok);
}

#[test]
fn other_users_are_told_to_become_root_for_it() {
    let facts = Facts { qemu: Ok(Qemu::Absent), is_root: false, ..healthy() };
    assert_eq!(
        check_of(&facts, "qemu").fix.as_deref(),
        Some("sudo apt-get install qemu-system-x86")
    );
}

#[test]
fn qemu_versions_are_read_as_distributions_write_them() {
    let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)";
    assert_eq!(qemu_version(debian), Qemu::Version(7, 2));
    assert_eq!(qemu_version("QEMU emulator version 10.0.2\n"), Qemu::Version(10, 0));
    assert_eq!(qemu_version("bash: no\n"), Qemu::Strange("bash: no".into()));
    assert_eq!(qemu_version(""), Qemu::Strange(String::new()));
}

#[test]
fn the_hierarchy_with_the_cpu_controller_decides_the_kind() {
    let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
    let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
    assert_eq!(cgroup_kind(v2), CgroupKind::V2);
    assert_eq!(cgroup_kind(hybrid), CgroupKind::V1);
    assert_eq!(cgroup_kind("proc /proc proc rw 0 0\n"), CgroupKind::Absent);
}

#[test]
fn available_memory_is_read_in_mebibytes() {
    let text = "MemTotal:  100 kB\nMemAvailable:    2048000 kB\n";
    assert_eq!(available_memory(text), Some(Memory { available: 2000 }));
    assert_eq!(available_memory("MemTotal: 1 kB\n"), None);
}
