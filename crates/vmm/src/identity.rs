//! Who a VM is, told in a way that outlives its owner.
//!
//! A process id alone lies: ids are used again. With the start time, and the boot of the host it
//! was read in, it names one process for ever; the UUID, asked from the monitor itself, proves
//! that it is that VM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What to remember about a VM in order to adopt it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmIdentity {
    /// The VM's UUID, which its monitor repeats when asked.
    pub id: Uuid,
    /// Process id on the host.
    pub pid: u32,
    /// Start time of that process in clock ticks since the host booted (`/proc/<pid>/stat`,
    /// field 22).
    pub start_time: u64,
    /// The boot of the host during which all this holds.
    pub boot_id: String,
    /// The control socket.
    pub control_socket: PathBuf,
    /// The VM's control group, if it has one of its own, removed after its end.
    pub cgroup: Option<PathBuf>,
    /// Whether the kernel kills the VM when its owner dies.
    pub die_with_owner: bool,
    /// The socket for the guest's console, served by the owner, if it has one.
    pub console: Option<PathBuf>,
    /// The socket for the guest's screen, served by the owner, if it has one.
    pub graphics: Option<PathBuf>,
    /// Sockets made for this VM, removed after its end.
    pub sockets: Vec<PathBuf>,
}
