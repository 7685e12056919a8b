//! `UtilityVm`: one virtual machine and everything that is plugged into it.
//!
//! The crate is the seed's `internal/uvm` (hcsshim v0.8.9) in Rust: same names, same texts, same
//! order of checks, its known faults put right. What decides is pure and stands alone; what acts
//! is small and goes through the machine monitor ([`coracle_vmm`]) and the bridge to the guest
//! ([`coracle_bridge`]).
//!
//! | module | what |
//! |---|---|
//! | [`options`], [`validate`] | what a caller wants, and whether it can be |
//! | [`description`], [`merge`] | the VM as a document that extra JSON may change, and as a configuration |
//! | [`hcs`] | what hcsshim gives a Windows host, for the backend to come |
//! | [`UtilityVm`] | create, start, wait, terminate, close; in `lifecycle`, states in `state` |
//! | `guest` | containers, processes, capabilities |
//! | [`modify`], `disks`, `layers`, `show` | changes, split between host and guest |
//! | [`windows`] | the rules of what only Windows guests have |
//! | `plug`, [`scsi`], [`share`], `pipe`, `vpmem`, [`network`] | what is plugged in while the VM runs, one place per kind |
//! | [`output`], `entropy` | what the guest's program prints, what the guest is fed |
//! | `identity`, `counters`, `stats`, `resources`, [`schema`] | who a VM is, what it uses and may use |
//! | [`timeline`] | when each step of a boot happened |
//!
//! ```no_run
//! # async fn example() -> Result<(), coracle_uvm::UvmError> {
//! use coracle_uvm::{UtilityVm, options::OptionsLcow};
//!
//! let vm = UtilityVm::create_lcow(OptionsLcow::new_default("", "example")).await?;
//! vm.start().await?;
//! println!("the guest speaks version {}", vm.capabilities().0);
//! vm.close().await
//! # }
//! ```
#![forbid(unsafe_code)]

mod counters;
pub mod description;
mod disks;
mod entropy;
mod errors;
mod guest;
pub mod hcs;
mod identity;
mod layers;
mod lifecycle;
mod limits;
pub mod merge;
pub mod modify;
pub mod network;
pub mod options;
pub mod output;
mod pipe;
mod plug;
pub mod record;
mod resources;
pub mod schema;
pub mod scsi;
pub mod share;
mod show;
mod state;
mod stats;
pub mod timeline;
pub mod validate;
pub mod vpci;
mod vpmem;
mod vsock;
pub mod windows;

pub use coracle_vmm::{Accel, User, cgroup, effect};
pub use errors::{Result, UvmError};
pub use lifecycle::{KeeperStartError, UnexpectedExit, UtilityVm, bury};
pub use pipe::PipeMount;
pub use record::{Recorder, RecordingError, VmRecord};
pub use state::{Event, Refused, State};
pub use vsock::VsockError;

/// The keeper of a VM's channel, for the program that runs one as a process of its own.
pub mod keeper {
    pub use coracle_bridge::channel::ChannelDir;
    pub use coracle_bridge::channel::keeper::*;
}

/// Who a process of the host is.
pub mod process {
    pub use coracle_vmm::process::{
        PART, Process, ProcessIdentity, all_processes, host_boot_id, processes_with,
    };
}

/// What runs in a VM, as the bridge knows it.
pub mod container {
    pub use coracle_bridge::client::{
        BridgeError, Container, Process, StdinResume, StdinWriter, Stdio, StdioResume, StdoutReader,
    };
    pub use coracle_bridge::hresult::Hresult;
    pub use coracle_bridge::message::{
        CgroupMetrics, ContainerConfig, ContainerConstraints, ProcessParameters, ProcessState,
        State as GuestState,
    };
    pub use coracle_bridge::wire::Json;
}
