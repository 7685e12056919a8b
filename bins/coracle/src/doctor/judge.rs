//! From facts to checks; pure.

use coracle_vmm::accel::Kvm;

use super::facts::{CgroupKind, Cgroups, Device, Facts, Guest, Probed, Qemu, Space};
use super::{Check, State};

/// The oldest QEMU we test with.
const QEMU_OLDEST: (u32, u32) = (7, 2);
/// The oldest QEMU that has all we ask of it.
const QEMU_LEAST: (u32, u32) = (6, 0);
/// Below this there is no room for the guest's files and one image.
const SPACE_LEAST: u64 = 512 << 20;
/// Below this the image cache soon is full.
const SPACE_AMPLE: u64 = 4 << 30;
/// Memory of a VM unless told otherwise, and a little for QEMU itself, in MiB.
const MEMORY_AMPLE: u64 = 1024 + 128;

/// All checks, in the order in which one would mend them.
pub fn judge(facts: &Facts) -> Vec<Check> {
    vec![
        qemu(facts),
        kvm(facts),
        guest(&facts.guest),
        memory(facts),
        space(&facts.space),
        cgroups(facts),
        tun(facts.tun),
        nft(facts),
        vsock(facts.vsock),
        virtiofsd(facts),
    ]
}

type Opinion = (State, String, Option<String>);

fn well(found: impl Into<String>) -> Opinion {
    (State::Ok, found.into(), None)
}

fn warn(found: impl Into<String>, fix: impl Into<String>) -> Opinion {
    (State::Warn, found.into(), Some(fix.into()))
}

fn fail(found: impl Into<String>, fix: impl Into<String>) -> Opinion {
    (State::Fail, found.into(), Some(fix.into()))
}

/// A probe that failed is a finding of its own.
fn opinion<T>(probed: &Probed<T>, judge: impl FnOnce(&T) -> Opinion) -> Opinion {
    match probed {
        Ok(fact) => judge(fact),
        Err(reason) => (State::Unknown, format!("cannot tell: {reason}"), None),
    }
}

fn check(name: &'static str, why: &'static str, (state, found, fix): Opinion) -> Check {
    Check { name, state, found, why, fix }
}

/// A command that only root may run.
fn as_root(facts: &Facts, command: &str) -> String {
    if facts.is_root { command.to_owned() } else { format!("sudo {command}") }
}

fn qemu(facts: &Facts) -> Check {
    let install = || as_root(facts, "apt-get install qemu-system-x86");
    let opinion = opinion(&facts.qemu, |qemu| match qemu {
        Qemu::Absent => fail("no qemu-system-x86_64 in PATH", install()),
        Qemu::Strange(text) => (State::Unknown, format!("it calls itself `{text}`"), None),
        Qemu::Version(major, minor) if (*major, *minor) < QEMU_LEAST => {
            fail(format!("QEMU {major}.{minor}, too old"), install())
        }
        Qemu::Version(major, minor) if (*major, *minor) < QEMU_OLDEST => {
            warn(format!("QEMU {major}.{minor}, older than any we test with"), install())
        }
        Qemu::Version(major, minor) => well(format!("QEMU {major}.{minor}")),
    });
    check("qemu", "QEMU is the virtual machine", opinion)
}

fn kvm(facts: &Facts) -> Check {
    let found = facts.kvm.why();
    let opinion = match &facts.kvm {
        Kvm::Fast { .. } => well(found),
        Kvm::Missing => warn(
            found,
            format!(
                "{} (kvm_amd on AMD); in a VM, have its host allow nested virtualization",
                as_root(facts, "modprobe kvm_intel")
            ),
        ),
        Kvm::Forbidden => warn(found, "sudo usermod -aG kvm $USER, then log in again"),
        Kvm::Slow { .. } | Kvm::Broken { .. } => {
            warn(found, "nothing to mend from inside; use a host with hardware virtualization")
        }
    };
    check(
        "kvm",
        "without it guest code is emulated (TCG): every feature, at a fraction of the speed",
        opinion,
    )
}

fn guest(guest: &Guest) -> Check {
    let opinion = match guest {
        Guest::Ready { release, folder } => {
            well(format!("Linux {release} in {}", folder.display()))
        }
        Guest::Absent { folder } => fail(
            format!("no guest files in {}", folder.display()),
            "make setup, or coracle guest build",
        ),
        Guest::Broken { reason } => fail(reason.clone(), "coracle guest build --force"),
    };
    check("guest", "the kernel, the initrd and the built-in root every VM boots from", opinion)
}

fn memory(facts: &Facts) -> Check {
    let opinion = opinion(&facts.memory, |memory| {
        let found = format!("{} MiB available", memory.available);
        if memory.available < MEMORY_AMPLE {
            warn(found, "end other programs, or give VMs less: coracle run --memory 256m")
        } else {
            well(found)
        }
    });
    check("memory", "a VM gets 1 GiB unless told otherwise", opinion)
}

fn space(space: &Probed<Space>) -> Check {
    let opinion = opinion(space, |Space { folder, free }| {
        let found = format!("{} MiB free for {}", free >> 20, folder.display());
        let fix = "free some, or move: coracle --root DIR (or CORACLE_ROOT=DIR)";
        if *free < SPACE_LEAST {
            fail(found, fix)
        } else if *free < SPACE_AMPLE {
            warn(found, fix)
        } else {
            well(found)
        }
    });
    check("disk", "guest files, converted images and writable layers live there", opinion)
}

fn cgroups(facts: &Facts) -> Check {
    let opinion = opinion(&facts.cgroups, |Cgroups { kind, writable }| {
        let name = match kind {
            CgroupKind::V2 => "cgroup v2",
            CgroupKind::V1 => "cgroup v1",
            CgroupKind::Absent => {
                return warn(
                    "no control groups are mounted",
                    as_root(facts, "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
                );
            }
        };
        if *writable {
            well(format!("{name}, writable"))
        } else {
            warn(
                format!("{name}, not writable for this user"),
                "systemd-run --user --scope -p Delegate=yes coracle run ...",
            )
        }
    });
    check("cgroups", "they hold a VM to its share of CPU time", opinion)
}

fn tun(tun: Device) -> Check {
    let opinion = match tun {
        Device::Usable => well("/dev/net/tun opens"),
        Device::Absent => warn("there is no /dev/net/tun", "sudo modprobe tun"),
        Device::Denied => {
            warn("/dev/net/tun is there, but not for this user", "sudo chmod 0666 /dev/net/tun")
        }
    };
    check("tun", "a VM's network interfaces are taps", opinion)
}

fn nft(facts: &Facts) -> Check {
    let opinion = if facts.has_nft {
        well("nft is installed")
    } else {
        warn("nft is not installed", as_root(facts, "apt-get install nftables"))
    };
    check(
        "nft",
        "private networks are made of its rules; without it there is `--net user`",
        opinion,
    )
}

fn vsock(vsock: Device) -> Check {
    let opinion = match vsock {
        Device::Usable => well("/dev/vhost-vsock opens"),
        Device::Absent | Device::Denied => well("no /dev/vhost-vsock, and none is needed"),
    };
    check(
        "vsock",
        "only guests that speak AF_VSOCK themselves use it; ours speaks virtio-serial",
        opinion,
    )
}

fn virtiofsd(facts: &Facts) -> Check {
    let opinion = match &facts.virtiofsd {
        Some(path) => well(path.display().to_string()),
        None => well("not installed, and not needed yet"),
    };
    check("virtiofsd", "serves host directories to a guest faster than 9P does", opinion)
}
