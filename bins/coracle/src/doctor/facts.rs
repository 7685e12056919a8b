//! What the probes found out, without any opinion.

use std::path::PathBuf;

use coracle_vmm::accel::Kvm;

/// A probe's answer, or why it could not give one.
pub type Probed<T> = Result<T, String>;

/// Everything the checks are judged by.
#[derive(Debug, Clone)]
pub struct Facts {
    pub kvm: Kvm,
    pub qemu: Probed<Qemu>,
    pub guest: Guest,
    pub vsock: Device,
    pub tun: Device,
    pub cgroups: Probed<Cgroups>,
    pub space: Probed<Space>,
    pub memory: Probed<Memory>,
    pub virtiofsd: Option<PathBuf>,
    /// Whether `nft` is there.
    pub has_nft: bool,
    /// Whether we are root, which changes what mends a thing.
    pub is_root: bool,
}

/// The QEMU in the search path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qemu {
    /// There is none.
    Absent,
    /// Its major and minor version.
    Version(u32, u32),
    /// It does not say its version in a form we know.
    Strange(String),
}

/// The guest's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// All are there; the kernel's release and the folder.
    Ready { release: String, folder: PathBuf },
    /// None were made yet.
    Absent { folder: PathBuf },
    /// They cannot be used; with the reason.
    Broken { reason: String },
}

/// A device file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Absent,
    Denied,
    Usable,
}

/// The control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroups {
    pub kind: CgroupKind,
    /// Whether we may make groups below our own.
    pub writable: bool,
}

/// How the control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupKind {
    /// The unified hierarchy.
    V2,
    /// One hierarchy per controller.
    V1,
    /// Not at all.
    Absent,
}

/// Free disk space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Where our data goes.
    pub folder: PathBuf,
    /// Bytes we may still write there.
    pub free: u64,
}

/// The host's memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub available: u64,
}
