//! What a VM is doing, what happens to it, and why it ended.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::DeviceId;

/// Whether the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmStatus {
    /// Launched paused; no instruction has run.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// The guest has shut down or panicked; the process is about to end.
    Stopping,
    /// The process is gone.
    Exited,
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The virtual CPUs run.
    Resumed,
    /// The virtual CPUs stand still.
    Paused,
    /// The guest shut down, rebooted, or was told to by the host.
    ShutDown {
        /// The guest itself asked for it.
        by_guest: bool,
        /// QEMU's word for the cause, such as `guest-shutdown` or `guest-reset`.
        reason: String,
    },
    /// The guest's kernel reported a panic.
    Panicked,
    /// A device is gone from the guest.
    Unplugged(DeviceId),
    /// The guest refused to let a device go.
    UnplugRefused(DeviceId),
    /// The last event: the process is gone.
    Exited(ExitReason),
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ExitReason {
    /// The guest powered itself off.
    Shutdown,
    /// The guest rebooted, which ends a VM as well.
    Reset,
    /// The guest's kernel panicked.
    Panic {
        /// The last lines of its console.
        console: String,
    },
    /// Somebody who held the handle killed it, or told the monitor to quit.
    Killed,
    /// The process was killed by a signal that did not come from its handle.
    Signal {
        /// The signal's number.
        signal: i32,
        /// The last lines the process wrote on stderr.
        stderr: String,
    },
    /// The process ended by itself, with an error or for no reason it gave.
    Failed {
        /// Its exit status; none when it was adopted and so not ours to reap.
        status: Option<i32>,
        /// The last lines it wrote on stderr.
        stderr: String,
    },
}

impl ExitReason {
    /// Whether this is how a VM is meant to end: shut down by its guest or killed by its owner.
    pub fn is_expected(&self) -> bool {
        match self {
            ExitReason::Shutdown | ExitReason::Reset | ExitReason::Killed => true,
            ExitReason::Panic { .. } | ExitReason::Signal { .. } | ExitReason::Failed { .. } => {
                false
            }
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::Shutdown => f.write_str("the guest shut down"),
            ExitReason::Reset => f.write_str("the guest rebooted"),
            ExitReason::Killed => f.write_str("the VM was killed by its owner"),
            ExitReason::Panic { console } => {
                f.write_str("the guest's kernel panicked")?;
                tail(f, console)
            }
            ExitReason::Signal { signal, stderr } => {
                write!(f, "the VM's process was killed by signal {signal}")?;
                tail(f, stderr)
            }
            ExitReason::Failed { status: Some(status), stderr } => {
                write!(f, "the VM's process ended with status {status}")?;
                tail(f, stderr)
            }
            ExitReason::Failed { status: None, stderr } => {
                f.write_str("the VM's process ended unexpectedly")?;
                tail(f, stderr)
            }
        }
    }
}

fn tail(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let text = text.trim();
    if text.is_empty() { Ok(()) } else { write!(f, ":\n{text}") }
}

/// What a VM costs the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
    /// CPU time of the process, user and system, since it started.
    pub cpu_time: Duration,
    /// Time since the process started.
    pub uptime: Duration,
}
