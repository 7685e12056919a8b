//! Every member of the two structs and what becomes of it.

use std::path::PathBuf;

use coracle_persist::model::{HypervisorConfig, SandboxConfig};
use coracle_uvm::options::{ChannelBacking, DiskCache, VirtioFsCache};
use serde_json::Value;

use crate::plug::{Kind, ShareType};
use crate::spec::SandboxSpec;

/// What becomes of a member that is set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate<C> {
    /// It changes the sandbox.
    Effect(fn(&C, &mut SandboxSpec)),
    /// It changes the sandbox if its value is one it can have.
    Checked(fn(&C, &mut SandboxSpec) -> Result<(), String>),
    /// It can only be what it always is.
    Always(&'static str),
    /// It cannot be set, for this reason.
    Refused(&'static str),
}

/// Why a member is not taken.
pub(super) enum Refusal {
    Member(&'static str),
    Value(String),
}

use Fate::{Always, Checked, Effect, Refused};

const TEMPLATES: &str = "VMs are not made from templates";
const FIXED_ROOM: &str = "the room for devices follows from what the sandbox may be given";
const STORE: &str = "--device vhost-user-blk:SOCKET names the socket itself";
const GUEST: &str = "kernel and initrd are made together: `coracle guest build`";
const OTHER_VMM: &str = "it belongs to another VMM";
const OLD_PARTS: &str = "there is no such part; Kata 2 has none either";
const NETWORK: &str = "networks are chosen by --net";
const RECORD: &str = "it is a part of the state, not a setting";

const VM: &[(&str, Fate<HypervisorConfig>)] = &[
    (
        "NumVCPUs",
        Checked(|from, to| {
            if from.num_vcpus > 255 {
                return Err("a VM has 1 to 255".to_owned());
            }
            to.vcpus = from.num_vcpus;
            Ok(())
        }),
    ),
    (
        "DefaultMaxVCPUs",
        Checked(|from, to| {
            if from.default_max_vcpus > 255 {
                return Err("a VM has 1 to 255".to_owned());
            }
            to.max_vcpus = Some(from.default_max_vcpus);
            Ok(())
        }),
    ),
    ("MemorySize", Effect(|from, to| to.memory_mib = from.memory_size.into())),
    ("DefaultBridges", Refused(FIXED_ROOM)),
    ("Msize9p", Always("65536")),
    ("MemSlots", Refused("memory grows by virtio-mem, which has no slots: --max-memory")),
    ("MemOffset", Refused("QEMU places the memory")),
    ("VirtioFSCacheSize", Refused("QEMU has no DAX window for virtio-fs")),
    ("KernelPath", Effect(|from, to| to.kernel = Some(from.kernel_path.clone().into()))),
    ("ImagePath", Refused(GUEST)),
    ("InitrdPath", Refused(GUEST)),
    ("FirmwarePath", Refused("the kernel is entered directly")),
    ("MachineAccelerators", Refused("what executes guest code is chosen by --accel")),
    ("CPUFeatures", Checked(cpu_features)),
    ("HypervisorPath", Refused("QEMU is the one in PATH")),
    ("HypervisorCtlPath", Refused(OTHER_VMM)),
    ("JailerPath", Refused(OTHER_VMM)),
    ("BlockDeviceDriver", Always("virtio-scsi")),
    ("HypervisorMachineType", Always("q35")),
    ("MemoryPath", Refused(TEMPLATES)),
    ("DevicesStatePath", Refused(TEMPLATES)),
    (
        "EntropySource",
        Effect(|from, to| to.tuning.entropy_source = Some(from.entropy_source.clone().into())),
    ),
    ("SharedFS", Checked(shared_fs)),
    ("VirtioFSDaemon", Checked(virtiofs_daemon)),
    ("VirtioFSCache", Checked(virtiofs_cache)),
    (
        "VirtioFSExtraArgs",
        Effect(|from, to| {
            to.tuning.virtiofs.extra_args = from.virtio_fs_extra_args.clone().unwrap_or_default();
        }),
    ),
    ("FileBackedMemRootDir", Refused("shared memory is a memfd, which has no directory")),
    ("BlockDeviceCacheSet", Effect(disk_cache)),
    ("BlockDeviceCacheDirect", Checked(needs_cache_set)),
    ("BlockDeviceCacheNoflush", Checked(needs_cache_set)),
    ("DisableBlockDeviceUse", Effect(|_, to| to.tuning.no_disks = true)),
    ("EnableIOThreads", Effect(|_, to| to.tuning.io_thread = true)),
    ("Debug", Refused("how much is told is chosen by --log")),
    ("MemPrealloc", Effect(|_, to| to.physical_memory = true)),
    ("HugePages", Effect(|_, to| to.tuning.huge_pages = true)),
    ("VirtioMem", Always("true")),
    ("Realtime", Refused("Kata has dropped it; MemPrealloc and Mlock are what is left of it")),
    ("Mlock", Effect(|_, to| to.tuning.lock_memory = true)),
    ("DisableNestingChecks", Always("true")),
    ("UseVSock", Effect(|_, to| to.tuning.channel = ChannelBacking::Vsock { program: None })),
    ("DisableImageNvdimm", Always("true")),
    ("HotplugVFIOOnRootBus", Refused("QEMU cannot plug into the root bus of a q35")),
    ("PCIeRootPort", Refused(FIXED_ROOM)),
    ("BootToBeTemplate", Refused(TEMPLATES)),
    ("BootFromTemplate", Refused(TEMPLATES)),
    ("DisableVhostNet", Always("true")),
    ("EnableVhostUserStore", Refused(STORE)),
    ("VhostUserStorePath", Refused(STORE)),
    ("GuestHookPath", Refused("the agent runs no hooks")),
    ("VMid", Refused(TEMPLATES)),
];

const SANDBOX: &[(&str, Fate<SandboxConfig>)] = &[
    ("HypervisorType", Always("qemu")),
    ("HypervisorConfig", Refused("its members are set one by one, in [hypervisor] or by --set")),
    ("AgentType", Refused("the agent is coracle's own")),
    ("KataAgentConfig", Refused("the agent is coracle's own")),
    ("ProxyType", Refused(OLD_PARTS)),
    ("ProxyConfig", Refused(OLD_PARTS)),
    ("ShimType", Refused(OLD_PARTS)),
    ("KataShimConfig", Refused(OLD_PARTS)),
    ("NetworkConfig", Refused(NETWORK)),
    ("ShmSize", Effect(|from, to| to.tuning.shm_bytes = Some(from.shm_size))),
    ("SharePidNs", Refused("a sandbox has one container")),
    ("Stateful", Always("true")),
    ("SystemdCgroup", Refused("cgroups are made without systemd")),
    ("SandboxCgroupOnly", Effect(|_, to| to.tuning.own_cgroup = true)),
    ("EnableAgentPidNs", Refused("the agent is process 1 of the VM")),
    ("DisableGuestSeccomp", Always("true")),
    ("Experimental", Refused("there are no experimental features")),
    ("ContainerConfigs", Refused(RECORD)),
    ("cgroups", Refused(RECORD)),
];

/// Comma-separated; QEMU judges the names.
fn cpu_features(from: &HypervisorConfig, to: &mut SandboxSpec) -> Result<(), String> {
    let words = from.cpu_features.split(',').map(|word| word.trim().to_owned());
    let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+-=_.".contains(c);
    let says_how = |word: &str| word.starts_with(['+', '-']) || word.contains('=');
    match words.iter().find(|word| !word.chars().all(is_plain) || !says_how(word)) {
        Some(word) => Err(format!("{word:?} is none of +NAME, -NAME, NAME=on and NAME=off")),
        None => {
            to.tuning.cpu_features = words;
            Ok(())
        }
    }
}

/// What serves the shares that leave it open.
fn shared_fs(from: &HypervisorConfig, to: &mut SandboxSpec) -> Result<(), String> {
    match from.shared_fs.as_str() {
        "virtio-fs" => Ok(()),
        "virtio-9p" => {
            for plug in to.plugs.iter_mut().filter(|plug| plug.kind == Kind::Share) {
                plug.share_type = ShareType::Plan9;
            }
            Ok(())
        }
        _ => Err("it is virtio-fs or virtio-9p".to_owned()),
    }
}

fn virtiofs_daemon(from: &HypervisorConfig, to: &mut SandboxSpec) -> Result<(), String> {
    let path = PathBuf::from(&from.virtio_fs_daemon);
    if !path.is_absolute() {
        return Err("it is the absolute path of a virtiofsd".to_owned());
    }
    to.tuning.virtiofs.program = Some(path);
    Ok(())
}

fn virtiofs_cache(from: &HypervisorConfig, to: &mut SandboxSpec) -> Result<(), String> {
    to.tuning.virtiofs.cache = match from.virtio_fs_cache.as_str() {
        "auto" => VirtioFsCache::Auto,
        "always" => VirtioFsCache::Always,
        "none" => VirtioFsCache::None,
        _ => return Err("it is auto, always or none".to_owned()),
    };
    Ok(())
}

fn disk_cache(from: &HypervisorConfig, to: &mut SandboxSpec) {
    to.tuning.disk_cache = DiskCache {
        direct: from.block_device_cache_direct,
        no_flush: from.block_device_cache_noflush,
    };
}

/// The effect is that of `BlockDeviceCacheSet`.
fn needs_cache_set(from: &HypervisorConfig, _: &mut SandboxSpec) -> Result<(), String> {
    match from.block_device_cache_set {
        true => Ok(()),
        false => Err("it needs BlockDeviceCacheSet".to_owned()),
    }
}

/// All members: those of the VM, then those of the sandbox.
pub fn names() -> impl Iterator<Item = &'static str> {
    VM.iter().map(|(name, _)| *name).chain(SANDBOX.iter().map(|(name, _)| *name))
}

/// What becomes of a member, in words: `effect`, `always VALUE`, or `refused: WHY`.
pub fn fate(name: &str) -> Option<String> {
    find(VM, name).map(describe).or_else(|| find(SANDBOX, name).map(describe))
}

fn describe<C>(fate: &Fate<C>) -> String {
    match fate {
        Effect(_) | Checked(_) => "effect".to_owned(),
        Always(value) => format!("always {value}"),
        Refused(why) => format!("refused: {why}"),
    }
}

pub(super) fn is_of_the_vm(name: &str) -> bool {
    find(VM, name).is_some()
}

pub(super) fn is_of_the_sandbox(name: &str) -> bool {
    find(SANDBOX, name).is_some()
}

fn find<C>(table: &'static [(&str, Fate<C>)], name: &str) -> Option<&'static Fate<C>> {
    table.iter().find(|(member, _)| *member == name).map(|(_, fate)| fate)
}

/// Lets a member have its effect.
pub(super) fn apply(
    name: &str,
    vm: &HypervisorConfig,
    sandbox: &SandboxConfig,
    spec: &mut SandboxSpec,
) -> Result<(), Refusal> {
    if let Some(fate) = find(VM, name) {
        return settle(fate, name, vm, spec);
    }
    find(SANDBOX, name).map_or(Ok(()), |fate| settle(fate, name, sandbox, spec))
}

fn settle<C: serde::Serialize>(
    fate: &Fate<C>,
    name: &str,
    config: &C,
    spec: &mut SandboxSpec,
) -> Result<(), Refusal> {
    match fate {
        Effect(effect) => {
            effect(config, spec);
            Ok(())
        }
        Checked(effect) => effect(config, spec).map_err(Refusal::Value),
        Always(value) => {
            let fields = super::fields(config);
            let told = |asked: &Value| asked.as_str().map_or(asked.to_string(), str::to_owned);
            let is_so = fields.get(name).map(told).is_some_and(|told| told == *value);
            if is_so { Ok(()) } else { Err(Refusal::Value(format!("it is always {value}"))) }
        }
        Refused(why) => Err(Refusal::Member(why)),
    }
}
