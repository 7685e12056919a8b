//! What a VM is to be: plain data, made by the utility VM, read by the monitor.
//!
//! Files come as open descriptors where the monitor needs them only open (disks): it runs as a
//! user of its own and may not be able to open their paths. Nothing here names a QEMU option.

use std::{fmt, path::PathBuf};

use uuid::Uuid;

use crate::device::{Disk, Pmem, SerialPort, SharedMemory};

/// A number of mebibytes (2^20 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MiB(pub u64);

impl MiB {
    /// The same amount in bytes; saturates.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Everything a monitor needs to know to launch one VM.
#[derive(Debug)]
pub struct VmConfig {
    /// The VM's identity; the guest sees it as its system UUID.
    pub id: Uuid,
    /// A name for process lists; letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// An existing directory, private to the VM, where its control socket `qmp.sock` is made.
    pub run_dir: PathBuf,
    /// Virtual CPUs, 1 to 255.
    pub vcpus: u32,
    /// Virtual CPUs the VM can have while it runs; fewer than [`VmConfig::vcpus`] means no more. On an
    /// emulated processor there is room for two at least.
    pub max_vcpus: u32,
    /// Guest memory.
    pub memory: Memory,
    /// Memory the VM can have beyond that while it runs, a multiple of 2 MiB.
    pub max_extra_memory: MiB,
    /// What the VM boots.
    pub boot: Boot,
    /// How guest code is run.
    pub accel: Accel,
    /// Features the guest's processors have beyond the usual, or have not: `+name`, `-name` or
    /// `name=on|off`, in QEMU's names. An unknown one fails the launch.
    pub cpu_features: Vec<String>,
    /// The host's file that the guest's entropy comes from. None: `getrandom`.
    pub entropy: Option<PathBuf>,
    /// Serve disks from a thread of their own instead of the monitor's main one.
    pub io_thread: bool,
    /// Launch without running: the guest's first instruction waits for [`crate::Vm::resume`].
    pub paused: bool,
    /// Byte channels to the guest, each on a controller of its own.
    pub serial_ports: Vec<SerialPort>,
    /// Memory that guest and host have in common, where it is of use.
    pub shared_memory: Option<SharedMemory>,
    /// SCSI controllers, 0 to 4, named by number in [`crate::DiskPlace::Scsi`].
    pub scsi_controllers: u32,
    /// Disks there from the start.
    pub disks: Vec<Disk>,
    /// Persistent memory devices there from the start; the guest numbers them in this order.
    pub pmem: Vec<Pmem>,
    /// A limit over all disks together, those plugged in later included.
    pub throttle: Option<Throttle>,
    /// Where the owner serves the guest's serial console, for one person at a time to dial.
    pub console: Option<PathBuf>,
    /// Where the owner serves VNC with the guest's screen and keyboard.
    pub graphics: Option<PathBuf>,
    /// Bridges with 31 free places each for network and other PCI devices plugged in later.
    pub hotplug_bridges: u32,
    /// Room in the guest's address space for persistent memory plugged in later, in all.
    pub hotplug_memory: MiB,
    /// Limits on what the VM's process takes from the host.
    pub cgroup: Option<Cgroup>,
    /// The user the VM's process becomes; none: it stays ours. Capabilities go either way.
    pub user: Option<User>,
    /// The VM is killed by the kernel when this process dies, however it dies.
    pub die_with_owner: bool,
    /// Report memory the guest does not use to the host, which takes it back.
    pub free_page_reporting: bool,
    /// Arguments for the monitor, appended as they are. For what this crate has no word for.
    pub extra_arguments: Vec<String>,
}

impl VmConfig {
    /// A VM with one CPU, 256 MiB, one SCSI controller and one hot-plug bridge, which dies with
    /// its owner.
    pub fn new(id: Uuid, run_dir: impl Into<PathBuf>, boot: Boot) -> Self {
        Self {
            id,
            name: format!("coracle-{}", id.simple()),
            run_dir: run_dir.into(),
            vcpus: 1,
            max_vcpus: 1,
            max_extra_memory: MiB(0),
            memory: Memory::new(MiB(256)),
            boot,
            accel: Accel::Auto,
            cpu_features: Vec::new(),
            entropy: None,
            io_thread: false,
            paused: false,
            serial_ports: Vec::new(),
            shared_memory: None,
            scsi_controllers: 1,
            disks: Vec::new(),
            pmem: Vec::new(),
            throttle: None,
            console: None,
            graphics: None,
            hotplug_bridges: 1,
            hotplug_memory: MiB(0),
            cgroup: None,
            user: None,
            die_with_owner: true,
            free_page_reporting: false,
            extra_arguments: Vec::new(),
        }
    }
}

/// Guest memory and where its address space has holes.
#[derive(Debug, Clone)]
pub struct Memory {
    /// How much the guest has.
    pub size: MiB,
    /// What stands behind it on the host.
    pub backing: MemoryBacking,
    /// Touch every page before the guest runs, so that none is missing later.
    pub prealloc: bool,
    /// Whether the pages may be swapped out.
    pub lock: Lock,
    /// Count the whole size against the host's commit limit at once; false defers that to the
    /// first use of each page.
    pub reserve: bool,
    /// Keep this much below 4 GiB free of memory, for device registers.
    pub low_mmio_gap: Option<MiB>,
    /// How much room device registers have above the memory.
    pub high_mmio_gap: Option<MiB>,
}

impl Memory {
    /// Pageable anonymous memory of this size, committed at once, unlocked.
    pub fn new(size: MiB) -> Self {
        Self {
            size,
            backing: MemoryBacking::Anonymous,
            prealloc: false,
            lock: Lock::No,
            reserve: true,
            low_mmio_gap: None,
            high_mmio_gap: None,
        }
    }
}

/// What stands behind guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Private pages of the VM's process.
    Anonymous,
    /// A memfd that device processes may map too.
    Shared,
    /// The same of the host's huge pages, of which it must have set enough aside
    /// (`vm.nr_hugepages`); sizes are multiples of theirs, 2 MiB on x86.
    HugePages,
}

/// Whether guest memory is locked into RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It may be swapped out.
    No,
    /// Locked where the limits allow it, else a warning.
    IfAllowed,
    /// Locked, or the launch fails with [`crate::VmmError::MemoryLock`].
    Required,
}

/// What the VM boots. Paths are opened by the launcher, so they need not be readable for the
/// user of the VM.
#[derive(Debug, Clone)]
pub enum Boot {
    /// Nothing: firmware that finds no kernel. For tests of the monitor alone.
    None,
    /// A kernel entered directly: a bzImage, or an ELF `vmlinux` with a PVH note (faster).
    Kernel {
        /// The kernel file.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The whole kernel command line.
        cmdline: String,
    },
    /// UEFI firmware that starts a bzImage through its EFI stub.
    Firmware {
        /// The kernel file.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The whole kernel command line.
        cmdline: String,
    },
}

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where a trial proves it fast, else TCG.
    #[default]
    Auto,
    /// KVM, or the launch fails.
    Kvm,
    /// Translation in software; everywhere, slower.
    Tcg,
}

/// A limit over all disks of a VM together; zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Operations a second.
    pub iops: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
}

/// The control group the VM's process runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Its path below the cgroup root, such as `coracle/<sandbox>`. Made before the launch and
    /// removed after the VM's end; missing parents are made too, and stay.
    pub path: PathBuf,
    /// CPU time in thousandths of one CPU, at least 1: 1500 is one and a half CPUs.
    pub cpu_millis: Option<u32>,
    /// Share under contention, 1 to 10000; others have 100.
    pub cpu_weight: Option<u32>,
    /// Where no group can be made, do without one.
    pub is_optional: bool,
}

/// A user for the VM's process; it gets no supplementary groups but what KVM's device demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}
