//! Virtual machine monitors as coracle drives them.
//!
//! Everything above this crate sees two traits: a [`Vmm`] launches or adopts a virtual machine,
//! a [`Vm`] is one that runs. Both are small on purpose: the verbs are the ones a utility VM
//! needs (resume, pause, plug, unplug, kill, wait), typed, without a word of any monitor's own
//! language. Two monitors stand behind them: QEMU, and a fake which is a separate process that
//! speaks the same control protocol and dies as cheaply as a real one. One suite of tests runs
//! unchanged on both, so that the fake cannot drift away from the truth.
//!
//! A VM is a process of its own. Its handle may be dropped, its owner may be killed; unless the
//! configuration says that it dies with its owner, it runs on and [`Vmm::adopt`] finds it again
//! by process id, start time and UUID.
#![deny(unsafe_code)]

pub mod accel;
pub mod cgroup;
pub mod config;
pub mod device;
pub mod effect;
mod error;
pub mod fake;
pub mod identity;
mod machine;
pub mod pci;
pub mod process;
pub mod qemu;
pub mod qmp;
mod socket;
mod state;
mod sys;
mod vm;

pub use config::{Accel, Boot, Cgroup, Lock, Memory, MemoryBacking, MiB, Throttle, User, VmConfig};
pub use device::{
    Device, DeviceId, Disk, DiskCache, DiskFormat, DiskPlace, MacAddress, Nic, NicSource, Pmem,
    SerialPort, Share, SharedMemory, UserNetwork,
};
pub use error::VmmError;
pub use identity::VmIdentity;
pub use pci::{PciAddress, PciDevice, PciSource};
pub use state::{ExitReason, VmEvent, VmStats, VmStatus};
pub use vm::{Vm, Vmm};
