//! What a Linux host wants to know beyond the seed's options. All of it is ours.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_vmm::effect::Effects;
use coracle_vmm::{Accel, DiskCache, User};
use serde::{Deserialize, Serialize};

use crate::record::Recorder;

/// A control group of a VM's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCgroup {
    /// Its path below the root of the control groups, such as `coracle/<sandbox>`.
    pub path: PathBuf,
    /// A VM without one is refused; else the host may have none, or forbid it.
    pub is_required: bool,
}

/// How directories are served by virtio-fs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtioFsServer {
    /// The program; none: the host's own virtiofsd.
    pub program: Option<PathBuf>,
    /// What the guest may keep of files in its memory.
    pub cache: VirtioFsCache,
    /// Arguments after ours, as they are.
    pub extra_args: Vec<String>,
}

/// What a guest may keep in its memory of files that are shared with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtioFsCache {
    /// For a moment, and as long as a file is open.
    #[default]
    Auto,
    /// For as long as it likes: for what nobody else changes.
    Always,
    /// Nothing.
    None,
}

impl VirtioFsCache {
    /// As virtiofsd has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::None => "none",
        }
    }
}

/// How the host runs the VM. The default suits a program that embeds one: everything in a run
/// folder of its own, the channel kept by a task, the VM dead when its owner is.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The folder for the VM's sockets, made if missing and removed at close if it was made.
    /// None: [`super::default_run_dir`].
    pub run_dir: Option<PathBuf>,
    /// Who carries the channel between host and guest.
    pub keeper: KeeperPlacement,
    /// What carries the channel's bytes.
    pub channel: ChannelBacking,
    /// Whether guest code runs on the processor or is translated.
    pub accelerator: Accel,
    /// Where the outcome of the trial of KVM is remembered until the host boots again. None: each
    /// process tries anew.
    pub verdicts: Option<PathBuf>,
    /// Kill the VM when this process dies (the seed's `ShouldTerminateOnLastHandleClosed`), and
    /// when the last handle is dropped without a close.
    pub die_with_owner: bool,
    /// The memory must be locked into RAM, or create fails. Physically backed memory is locked
    /// where the limits allow it even without this.
    pub lock_memory: bool,
    /// Processors the VM can have while it runs; 0: as many as it begins with.
    pub max_processors: u32,
    /// Memory the VM can have while it runs, in MiB; 0: as much as it begins with.
    pub max_memory_mib: u64,
    /// Who serves 9P shares.
    pub share_servers: ShareServers,
    /// How directories are served by virtio-fs.
    pub virtiofs: VirtioFsServer,
    /// Let servers of the host see the VM's memory: a virtio-fs share needs that.
    pub share_memory: bool,
    /// Make the VM's memory of the host's huge pages, as far as they are set aside
    /// (`vm.nr_hugepages`); the memory is a multiple of their size then.
    pub huge_pages: bool,
    /// Features the processors have beyond the usual, or have not: `+name`, `-name`, `name=on|off` in
    /// QEMU's names. An unknown one fails the create.
    pub cpu_features: Vec<String>,
    /// The host's file that the guest's entropy comes from. None: `getrandom`.
    pub entropy_source: Option<PathBuf>,
    /// Serve disks from a thread of their own.
    pub io_thread: bool,
    /// What the host may keep of disks in memory.
    pub disk_cache: DiskCache,
    /// Run the VM as this user. None: as ourselves.
    pub user: Option<User>,
    /// The control group of the VM and the servers of its shares. None: one is made only when a
    /// limit asks for it, named after the VM.
    pub cgroup: Option<OwnCgroup>,
    /// Disks that are plugged in before power-on, in the order of their LUNs.
    pub cold_disks: Vec<ColdDisk>,
    /// The name the guest gives itself. None: its own default.
    pub hostname: Option<String>,
    /// The file system of a root image, as `mount -t` names it. Default: `erofs`.
    pub root_filesystem: String,
    /// Where the VM is written down, so that it can be adopted when this process dies. None: nowhere.
    pub recorder: Option<Arc<dyn Recorder>>,
    /// Who hears of each change of the host and the guest before it happens; for tests.
    pub effects: Effects,
    /// The limit for create. Default 4 minutes, or `HCSSHIM_TIMEOUT_SYSTEMCREATE` in seconds.
    pub create_timeout: Duration,
    /// The limit for everything start does. Default 2 minutes, or
    /// `HCSSHIM_TIMEOUT_SYSTEMSTART` in seconds.
    pub start_timeout: Duration,
    /// The limit for each half of plugging something in or out: the guest's answer, and the host's
    /// unplugging. Default 30 seconds.
    pub device_timeout: Duration,
    /// The limit for undoing: it is counted afresh and never shared with the operation that
    /// failed.
    pub cleanup_timeout: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        Self {
            run_dir: None,
            keeper: KeeperPlacement::default(),
            channel: ChannelBacking::default(),
            accelerator: Accel::default(),
            verdicts: None,
            die_with_owner: true,
            lock_memory: false,
            huge_pages: false,
            cpu_features: Vec::new(),
            entropy_source: None,
            io_thread: false,
            disk_cache: DiskCache::default(),
            share_servers: ShareServers::default(),
            virtiofs: VirtioFsServer::default(),
            max_processors: 0,
            max_memory_mib: 0,
            share_memory: false,
            user: None,
            cgroup: None,
            cold_disks: Vec::new(),
            hostname: None,
            root_filesystem: "erofs".to_owned(),
            recorder: None,
            effects: Effects::default(),
            create_timeout: seconds(variable("HCSSHIM_TIMEOUT_SYSTEMCREATE"), 240),
            start_timeout: seconds(variable("HCSSHIM_TIMEOUT_SYSTEMSTART"), 120),
            device_timeout: Duration::from_secs(30),
            cleanup_timeout: Duration::from_secs(10),
        }
    }
}

fn seconds(text: Option<String>, default: u64) -> Duration {
    let given = text.and_then(|text| text.parse().ok()).filter(|&seconds| seconds > 0);
    Duration::from_secs(given.unwrap_or(default))
}

/// Who carries the channel.
#[derive(Debug, Clone, Default)]
pub enum KeeperPlacement {
    /// A task of this process: nothing more to install, gone with its owner.
    #[default]
    Task,
    /// A process of its own, which outlives this one: the command and its arguments, to which
    /// `--dir FOLDER` is added. `coracle keeper` is such a command.
    Process(Vec<String>),
    /// Nobody of ours: something else, such as a vhost-user vsock device, serves the folder.
    Elsewhere,
}

/// What carries the channel's bytes between host and guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "over")]
pub enum ChannelBacking {
    /// Two virtio-serial ports: QEMU alone is needed.
    #[default]
    VirtioSerial,
    /// The guest's AF_VSOCK, which a `vhost-device-vsock` serves. It shares the VM's memory
    /// ([`HostOptions::share_memory`] is implied).
    Vsock {
        /// The daemon; none: the host's own.
        program: Option<PathBuf>,
    },
}

/// Who serves 9P shares.
#[derive(Debug, Clone, Default)]
pub enum ShareServers {
    /// Threads of this process, gone with it.
    #[default]
    Task,
    /// Processes of their own, which outlive this one and end with the VM: the command and its
    /// arguments, to which those of the share are added. `coracle plan9` is such a command; the
    /// listening socket is its standard input.
    Process(Vec<String>),
}

/// A disk that is there from power-on.
#[derive(Debug, Clone)]
pub struct ColdDisk {
    /// The serial by which the guest finds it (1 to 20 characters), unique in the VM.
    pub serial: String,
    /// The opened disk or image file. The VM gets a duplicate; the path is never looked up again.
    pub file: Arc<OwnedFd>,
    /// Refuse writes.
    pub read_only: bool,
    /// Where start mounts it; None leaves it unmounted.
    pub mount: Option<ColdMount>,
}

/// Where and as what a cold disk is mounted in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdMount {
    /// The folder in the guest, made if missing.
    pub path: String,
    /// The file system: `erofs`, `ext4` or `xfs`.
    pub filesystem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_in_the_environment_is_in_seconds_and_never_zero() {
        let limit = |text: &str| seconds(Some(text.to_owned()), 240).as_secs();
        assert_eq!(["7", "0", "soon", ""].map(limit), [7, 240, 240, 240]);
        assert_eq!(seconds(None, 120).as_secs(), 120);
    }
}
