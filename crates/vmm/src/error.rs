//! What can go wrong when a VM is driven.

use std::{io, path::PathBuf, time::Duration};

use uuid::Uuid;

use crate::{DeviceId, ExitReason, MiB};

/// A failure of [`crate::Vmm`] or [`crate::Vm`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// More virtual processors than the VM has room for.
    #[error("the VM has room for {most} virtual processors")]
    TooManyCpus {
        /// How many it can have.
        most: u32,
    },
    /// The guest did not give or take memory in time.
    #[error(
        "the guest has {there} of {wanted} memory beyond its own after {} s", limit.as_secs()
    )]
    MemoryTimeout {
        /// How much was asked for.
        wanted: crate::MiB,
        /// How much there is.
        there: crate::MiB,
        /// How long it was waited for.
        limit: std::time::Duration,
    },
    /// The monitor is not installed.
    #[error("{program} is not installed (Debian package {package})")]
    NotInstalled {
        /// The program looked for.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A file the VM needs cannot be opened.
    #[error("open {what} {}", path.display())]
    Open {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there but not what it should be.
    #[error("{what} {} is broken: {why}", path.display())]
    Broken {
        /// What it is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration contradicts itself or exceeds a limit.
    #[error("VM configuration: {0}")]
    Config(String),
    /// A device id breaks its rules.
    #[error("device id {id:?} is not a letter followed by at most 23 letters, digits, '-' or '_'")]
    DeviceId {
        /// The text.
        id: String,
    },
    /// A text is no PCI address.
    #[error("{text:?} is no PCI address of the form 0000:3b:00.0")]
    PciAddress {
        /// The text.
        text: String,
    },
    /// The accelerator that was asked for cannot be used.
    #[error("KVM was asked for but cannot be used: {why}; {remedy}")]
    NoKvm {
        /// Why not.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The kernel and its initrd need more memory than the guest is to have.
    #[error("{given} of memory is too little for this kernel and initrd; the least is {least}")]
    MemoryTooSmall {
        /// What the configuration gives.
        given: MiB,
        /// The least that can boot.
        least: MiB,
    },
    /// Memory was to be locked and the limits do not allow it.
    #[error("lock {needed} MiB of guest memory: the limit (ulimit -l) is {allowed} MiB")]
    MemoryLock {
        /// MiB that would have to be locked, monitor included.
        needed: u64,
        /// MiB allowed.
        allowed: u64,
    },
    /// A step on the host failed.
    #[error("{operation} {object}")]
    Host {
        /// What was done.
        operation: &'static str,
        /// To what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A test made this step fail.
    #[error("injected failure at effect {name}")]
    Injected {
        /// The effect.
        name: &'static str,
    },
    /// The VM ended before it could be controlled.
    #[error("launch VM: {reason}")]
    Launch {
        /// How it ended.
        reason: ExitReason,
    },
    /// The monitor's control socket failed.
    #[error("control VM: {operation}")]
    Control {
        /// The command or step.
        operation: String,
        /// Why it failed.
        source: crate::qmp::QmpError,
    },
    /// The VM has ended.
    #[error("the VM has ended")]
    Gone,
    /// Another owner holds the control socket.
    #[error("another process controls the VM")]
    Busy,
    /// The process or its answer belongs to another VM.
    #[error("process {pid} is not VM {id}")]
    NotThatVm {
        /// The VM looked for.
        id: Uuid,
        /// The process found.
        pid: u32,
    },
    /// No such device.
    #[error("no device {id} in the VM")]
    UnknownDevice {
        /// The id.
        id: DeviceId,
    },
    /// The id is taken.
    #[error("a device {id} is in the VM already")]
    DeviceExists {
        /// The id.
        id: DeviceId,
    },
    /// The place a device is to take is taken.
    #[error("the place of device {id} is taken: {why}")]
    PlaceTaken {
        /// The device.
        id: DeviceId,
        /// What the monitor said.
        why: String,
    },
    /// The place a device is to take does not exist.
    #[error("there is no such place for device {id}: {why}")]
    NoSuchPlace {
        /// The device.
        id: DeviceId,
        /// What the monitor said.
        why: String,
    },
    /// No free place is left for this kind of device.
    #[error("no free place for device {id}")]
    Full {
        /// The device.
        id: DeviceId,
    },
    /// The guest did not let a device go in time.
    #[error("the guest did not let device {id} go within {timeout:?}")]
    UnplugTimeout {
        /// The device.
        id: DeviceId,
        /// How long we waited.
        timeout: Duration,
    },
}

impl VmmError {
    /// A code for programs and documentation; it never changes.
    pub fn code(&self) -> &'static str {
        match self {
            VmmError::TooManyCpus { .. } => "E-VMM-CPUS",
            VmmError::MemoryTimeout { .. } => "E-VMM-MEMORY-TIME",
            VmmError::NotInstalled { .. } => "E-VMM-NOT-INSTALLED",
            VmmError::Open { .. } => "E-VMM-OPEN",
            VmmError::Broken { .. } => "E-VMM-BROKEN-FILE",
            VmmError::Config(_) => "E-VMM-CONFIG",
            VmmError::DeviceId { .. } => "E-VMM-DEVICE-ID",
            VmmError::PciAddress { .. } => "E-VMM-PCI-ADDRESS",
            VmmError::NoKvm { .. } => "E-VMM-NO-KVM",
            VmmError::MemoryTooSmall { .. } => "E-VMM-MEMORY-SMALL",
            VmmError::MemoryLock { .. } => "E-VMM-MEMORY-LOCK",
            VmmError::Host { .. } => "E-VMM-HOST",
            VmmError::Injected { .. } => "E-VMM-INJECTED",
            VmmError::Launch { .. } => "E-VMM-LAUNCH",
            VmmError::Control { .. } => "E-VMM-CONTROL",
            VmmError::Gone => "E-VMM-GONE",
            VmmError::Busy => "E-VMM-BUSY",
            VmmError::NotThatVm { .. } => "E-VMM-OTHER-VM",
            VmmError::UnknownDevice { .. } => "E-VMM-DEVICE-UNKNOWN",
            VmmError::DeviceExists { .. } => "E-VMM-DEVICE-EXISTS",
            VmmError::PlaceTaken { .. } => "E-VMM-PLACE-TAKEN",
            VmmError::NoSuchPlace { .. } => "E-VMM-NO-PLACE",
            VmmError::Full { .. } => "E-VMM-FULL",
            VmmError::UnplugTimeout { .. } => "E-VMM-UNPLUG-TIME",
        }
    }

    /// What a person can do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            VmmError::NotInstalled { package, .. } => Some(format!("apt-get install {package}")),
            VmmError::Open { what: "kernel" | "initrd", .. }
            | VmmError::Broken { what: "kernel" | "initrd", .. } => {
                Some("run `make setup`, or name another with --kernel".into())
            }
            VmmError::NoKvm { .. } => Some("use --accel tcg, or see coracle doctor".into()),
            VmmError::MemoryTooSmall { least, .. } => Some(format!("use --memory {}M", least.0)),
            VmmError::MemoryLock { .. } => Some("ulimit -l unlimited".into()),
            _ => None,
        }
    }
}
