//! What can go wrong with a utility VM.
//!
//! Callers of the seed compare some errors by identity (`== ErrNotAttached` decides whether a
//! layer falls back from PMEM to SCSI), so each of those is a variant of its own with the seed's
//! exact text, typing mistakes included, and is returned unwrapped. Every other variant names the
//! operation and its object and leaves the rest to its source; the text the seed would have
//! printed is the chain joined by `": "`. [`UvmError::code`] is the stable name of each for
//! programs and for `coracle explain`.

use std::io;
use std::path::PathBuf;

use coracle_bridge::client::BridgeError;
use coracle_bridge::hresult::Hresult;
use coracle_vmm::VmmError;

use crate::description::DescriptionError;
use crate::lifecycle::{KeeperStartError, UnexpectedExit};
use crate::modify::ModifyError;
use crate::validate::OptionsError;
use crate::vsock::VsockError;

/// The result of an operation on a [`crate::UtilityVm`].
pub type Result<T, E = UvmError> = std::result::Result<T, E>;

/// An operation on a utility VM failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UvmError {
    /// A namespace of this id is attached already (seed `ErrNetNSAlreadyAttached`).
    #[error("network namespace already added")]
    #[doc(alias = "ErrNetNSAlreadyAttached")]
    NetNsAlreadyAttached,
    /// No namespace has this id (seed `ErrNetNSNotFound`).
    #[error("network namespace not found")]
    #[doc(alias = "ErrNetNSNotFound")]
    NetNsNotFound,
    /// Every slot for this kind of device is taken (seed `ErrNoAvailableLocation`).
    #[error("no available location")]
    #[doc(alias = "ErrNoAvailableLocation")]
    NoAvailableLocation,
    /// The host path is not plugged in (seed `ErrNotAttached`).
    #[error("not attached")]
    #[doc(alias = "ErrNotAttached")]
    NotAttached,
    /// The seed declares it (`ErrAlreadyAttached`) and never returns it; nor does this crate.
    #[error("already attached")]
    #[doc(alias = "ErrAlreadyAttached")]
    AlreadyAttached,
    /// The VM was made without a SCSI controller (seed `ErrNoSCSIControllers`).
    #[error("no SCSI controllers configured for this utility VM")]
    #[doc(alias = "ErrNoSCSIControllers")]
    NoScsiControllers,
    /// The 65th disk (seed `ErrTooManyAttachments`).
    #[error("too many SCSI attachments")]
    #[doc(alias = "ErrTooManyAttachments")]
    TooManyAttachments,
    /// The seed declares it (`ErrSCSILayerWCOWUnsupported`) and never returns it; nor does this
    /// crate.
    #[error("SCSI attached layers are not supported for WCOW")]
    #[doc(alias = "ErrSCSILayerWCOWUnsupported")]
    ScsiLayerWcowUnsupported,
    /// The layer file is larger than a PMEM device (seed `ErrMaxVPMEMLayerSize`; the spelling is
    /// the seed's).
    #[error("layer size is to large for VPMEM max size")]
    #[doc(alias = "ErrMaxVPMEMLayerSize")]
    MaxVpmemLayerSize,
    /// The operation belongs to the other guest operating system.
    #[error("not supported")]
    NotSupported,

    /// The options do not describe a VM that can be made.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The VM description, extra JSON included, cannot be turned into a VM.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// A Windows guest was asked for on a host that is not Windows.
    #[error("a Windows guest needs a Windows host: this host runs Linux guests only")]
    WindowsHostNeeded,

    /// A folder, socket or file of the VM on the host could not be made.
    #[error("{operation} {path}")]
    HostFile {
        /// What was done to the path: "listen on", "make the folder".
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The machine monitor could not make the VM.
    #[error("create the VM {id}")]
    Launch {
        /// The VM's id.
        id: String,
        /// What the monitor said.
        #[source]
        source: VmmError,
    },
    /// The time for creating the VM ran out.
    #[error("create the VM {id}: not done within {seconds} s")]
    CreateTimeout {
        /// The VM's id.
        id: String,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The machine monitor could not start the VM's processors.
    #[error("power on the VM {id}")]
    PowerOn {
        /// The VM's id.
        id: String,
        /// What the monitor said.
        #[source]
        source: VmmError,
    },
    /// The machine monitor could not stop the VM's processors, or let them go on.
    #[error("{operation} the VM {id}")]
    Processors {
        /// `pause` or `resume`.
        operation: &'static str,
        /// The VM's id.
        id: String,
        /// What the monitor said.
        #[source]
        source: VmmError,
    },
    /// The machine monitor could not end the VM.
    #[error("terminate the VM {id}")]
    Terminate {
        /// The VM's id.
        id: String,
        /// What the monitor said.
        #[source]
        source: VmmError,
    },
    /// What is about to happen cannot be written down, so it does not happen.
    #[error("{operation}: cannot write down that it is about to happen")]
    Record {
        /// What was asked.
        operation: &'static str,
        /// Why not.
        #[source]
        source: crate::record::RecordingError,
    },
    /// The VM cannot be adopted.
    #[error("adopt the VM {id}")]
    Adopt {
        /// The VM's id.
        id: String,
        /// What the monitor said.
        #[source]
        source: VmmError,
    },
    /// The VM runs, and its guest is another than it was: all it held is gone.
    #[error("adopt the VM {id}: its guest was booted anew")]
    OtherGuest {
        /// The VM's id.
        id: String,
    },
    /// The guest of a VM that was adopted does not answer in time.
    #[error("adopt the VM {id}: its guest did not answer within {seconds} s")]
    GuestSilent {
        /// The VM's id.
        id: String,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The process that carries the VM's channel did not come up.
    #[error("start the keeper of the VM {id}")]
    Keeper {
        /// The VM's id.
        id: String,
        /// Why not.
        #[source]
        source: KeeperStartError,
    },
    /// The channel cannot be carried over AF_VSOCK.
    #[error("carry the channel of the VM {id} over AF_VSOCK")]
    Vsock {
        /// The VM's id.
        id: String,
        /// Why not.
        #[source]
        source: VsockError,
    },
    /// The VM could not be ended, or not in time.
    #[error("close the VM {id}: it did not end in time")]
    StillAlive {
        /// The VM's id.
        id: String,
    },

    /// A VM is started once in its life.
    #[error("start the VM {id}: it is {state}")]
    CannotStart {
        /// The VM's id.
        id: String,
        /// What it is instead of created.
        state: crate::State,
    },
    /// The operation needs a guest that runs.
    #[error("{operation}: the VM {id} is {state}, not running")]
    NotRunning {
        /// What was asked.
        operation: &'static str,
        /// The VM's id.
        id: String,
        /// What the VM is.
        state: crate::State,
    },
    /// The time for the whole start ran out.
    #[error("{step}: the VM did not start within {seconds} s")]
    StartTimeout {
        /// What the start was waiting for, in the seed's words.
        step: &'static str,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The VM ended while it was being started.
    #[error("{step}")]
    ExitedDuringStart {
        /// What the start was waiting for, in the seed's words.
        step: &'static str,
        /// How the VM ended.
        #[source]
        source: UnexpectedExit,
    },
    /// One of the sockets the guest dials at boot failed.
    #[error("{step}")]
    BootSocket {
        /// What the start was doing, in the seed's words.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The handshake with the guest failed.
    #[error("failed to connect to GCS")]
    Handshake(#[source] BridgeError),

    /// [`crate::UtilityVm::exit_error`] was asked before the VM exited.
    #[error("container not exited")]
    NotExited,
    /// The VM ended in a way nobody asked for.
    #[error(transparent)]
    UnexpectedExit(#[from] UnexpectedExit),

    /// The VM was started without a connection to its guest.
    #[error("{operation}: the VM {id} has no guest connection")]
    NoGuestConnection {
        /// What was asked.
        operation: &'static str,
        /// The VM's id.
        id: String,
    },
    /// The guest refused or lost a container's creation.
    #[error("failed to create container {container}")]
    CreateContainer {
        /// The container's id.
        container: String,
        /// What the guest said.
        #[source]
        source: BridgeError,
    },
    /// The guest cannot forget containers.
    #[error("uvm guest connection does not support deleteContainerState")]
    DeleteContainerStateUnsupported,
    /// A request to the guest failed.
    #[error("{operation} in the VM {id}")]
    Guest {
        /// What was asked.
        operation: &'static str,
        /// The VM's id.
        id: String,
        /// What the guest said.
        #[source]
        source: BridgeError,
    },
    /// A change of the VM's devices failed.
    #[error("{operation} {object}")]
    Modify {
        /// "mount the disk", "combine the layers at".
        operation: &'static str,
        /// The disk's serial, the guest path.
        object: String,
        /// Which half failed, and why.
        #[source]
        source: ModifyError,
    },
    /// A file of the host that is to be plugged in could not be opened or examined.
    #[error("{operation} {path}")]
    Source {
        /// What was done to it: "open the disk".
        operation: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something that can be written to was asked of a thing plugged in read-only.
    #[error("{path} is attached read-only: remove it before attaching it writable")]
    AttachedReadOnly {
        /// The path on the host.
        path: String,
    },
    /// A guest path already has something else mounted.
    #[error("{guest_path} in the guest is taken by {holder}")]
    GuestPathTaken {
        /// The path in the guest.
        guest_path: String,
        /// The host path of what is there.
        holder: String,
    },
    /// A share needs a path in the guest.
    #[error("uvmPath must be passed to AddPlan9")]
    NoUvmPath,
    /// A share is looked for by its path.
    #[error("no hostPath passed to GetVSMBUvmPath")]
    NoVsmbPath,
    /// The server of a share did not come up.
    #[error("share {}", path.display())]
    Share {
        /// The path on the host.
        path: PathBuf,
        /// Why not.
        #[source]
        source: crate::share::ServerError,
    },
    /// The server of a share has died; the share cannot be taken out of a VM that runs.
    #[error("the share at {path} is broken: its server has died")]
    ShareBroken {
        /// Its path in the guest.
        path: String,
    },
    /// virtio-fs and vhost-user devices need memory that their server can see.
    #[error("the VM was made without shared memory, which virtio-fs and vhost-user devices need")]
    MemoryNotShared,
    /// The VM was made without PCI devices of the host (seed `VPCIEnabled`).
    #[error("the VM was made without vPCI")]
    VpciDisabled,
    /// VFIO pins the guest's memory, so it must all be there.
    #[error("a device of the host needs a physically backed VM")]
    VpciMemory,
    /// No device of the VM has this id.
    #[error("no device with ID {id} is assigned")]
    NoVpciDevice {
        /// The id.
        id: String,
    },
    /// A PCI device cannot be assigned, or not be given back to the host.
    #[error("PCI device {device}")]
    Vpci {
        /// Its instance path.
        device: String,
        /// Why not.
        #[source]
        source: crate::vpci::VpciError,
    },
    /// A network endpoint cannot be added as it is.
    #[error("network endpoint {id}: {why}")]
    Endpoint {
        /// Its id.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// More or less of something than the VM can have.
    #[error("{wanted} is not within what the VM can have of {what}: {range}")]
    ResourceRange {
        /// `processors` or `memory`.
        what: &'static str,
        /// How much was asked for.
        wanted: u64,
        /// What can be had.
        range: String,
    },
    /// Another caller did the same first, and this is what came of it.
    #[error(transparent)]
    Shared(std::sync::Arc<UvmError>),
    /// The runtime of this process is being shut down.
    #[error("the operation was abandoned with its runtime")]
    Abandoned,
    /// The VM's processor and memory use could not be read.
    #[error("read the statistics of the VM {id}")]
    Stats {
        /// The VM's id.
        id: String,
        /// Why not.
        #[source]
        source: VmmError,
    },
}

impl UvmError {
    /// Whether something is half out: the guest let go of it, and the host did not.
    pub fn is_half_removed(&self) -> bool {
        matches!(self, Self::Modify { source: ModifyError::Removing(_), .. })
    }

    /// What a person can do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Launch { source, .. }
            | Self::PowerOn { source, .. }
            | Self::Processors { source, .. }
            | Self::Terminate { source, .. } => source.help(),
            Self::Options(
                OptionsError::KernelNotFound { .. } | OptionsError::BootFileNotFound { .. },
            ) => Some(
                "make the guest's files with `coracle guest build` (or `make setup`)".to_owned(),
            ),
            Self::NoScsiControllers => {
                Some("make the VM with `scsi_controller_count` of at least 1".to_owned())
            }
            Self::ShareBroken { .. } => Some(
                "it goes when the VM is stopped; QEMU cannot take another server for it".to_owned(),
            ),
            Self::MemoryNotShared => Some(
                "make the VM with the host option `share_memory`; a 9P share needs none".to_owned(),
            ),
            Self::Share { source: crate::share::ServerError::NoProgram { .. }, .. } => Some(
                "install virtiofsd (Debian 12: it comes with qemu-system-common), or use a 9P share"
                    .to_owned(),
            ),
            Self::Vsock { source: VsockError::NoProgram { .. }, .. } => Some(
                "install it (`cargo install vhost-device-vsock`, or `make setup`), or let the channel go \
                 over virtio-serial"
                    .to_owned(),
            ),
            Self::VpciDisabled => Some("make the VM with the option `vpci_enabled`".to_owned()),
            Self::VpciMemory => {
                Some(
                    "make the VM with the option `allow_overcommit` off (`coracle run \
                     --physical-memory`)"
                        .to_owned(),
                )
            }
            Self::Vpci { source, .. } => source.help(),
            Self::Shared(first) => first.help(),
            Self::Modify { source: ModifyError::Host(source) | ModifyError::Adding(source), .. } => {
                source.help()
            }
            _ => None,
        }
    }

    /// The stable name of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NetNsAlreadyAttached => "E-NETNS-ATTACHED",
            Self::NetNsNotFound => "E-NETNS-UNKNOWN",
            Self::NoAvailableLocation => "E-SLOT-FULL",
            Self::NotAttached => "E-NOT-ATTACHED",
            Self::AlreadyAttached => "E-ATTACHED",
            Self::NoScsiControllers => "E-SCSI-NONE",
            Self::TooManyAttachments => "E-SCSI-FULL",
            Self::ScsiLayerWcowUnsupported => "E-SCSI-WINDOWS",
            Self::MaxVpmemLayerSize => "E-PMEM-SIZE",
            Self::NotSupported => "E-NOT-SUPPORTED",
            Self::Options(_) => "E-OPTIONS",
            Self::Description(_) => "E-VM-DESCRIPTION",
            Self::WindowsHostNeeded => "E-WINDOWS-HOST",
            Self::HostFile { .. } => "E-HOST-FILE",
            Self::Launch { .. } => "E-VM-CREATE",
            Self::CreateTimeout { .. } => "E-VM-CREATE-TIME",
            Self::StillAlive { .. } => "E-VM-ALIVE",
            Self::PowerOn { .. } => "E-VM-POWER-ON",
            Self::Processors { .. } => "E-VM-PROCESSORS",
            Self::Terminate { .. } => "E-VM-TERMINATE",
            Self::Keeper { .. } => "E-KEEPER",
            Self::Vsock { .. } => "E-VSOCK",
            Self::Record { .. } => "E-VM-RECORD",
            Self::Adopt { .. } => "E-VM-ADOPT",
            Self::OtherGuest { .. } => "E-VM-OTHER-GUEST",
            Self::GuestSilent { .. } => "E-GUEST-SILENT",
            Self::CannotStart { .. } => "E-VM-STARTED",
            Self::NotRunning { .. } => "E-VM-NOT-RUNNING",
            Self::StartTimeout { .. } => "E-VM-START-TIME",
            Self::ExitedDuringStart { .. } => "E-VM-START-EXIT",
            Self::BootSocket { .. } => "E-VM-START-SOCKET",
            Self::Handshake(_) => "E-GUEST-HANDSHAKE",
            Self::NotExited => "E-VM-NOT-EXITED",
            Self::UnexpectedExit(_) => "E-VM-EXIT",
            Self::NoGuestConnection { .. } => "E-GUEST-NONE",
            Self::CreateContainer { .. } => "E-CONTAINER-CREATE",
            Self::DeleteContainerStateUnsupported => "E-CONTAINER-DELETE",
            Self::Guest { .. } => "E-GUEST",
            Self::Modify { .. } => "E-MODIFY",
            Self::Source { .. } => "E-DEVICE-SOURCE",
            Self::AttachedReadOnly { .. } => "E-DEVICE-READ-ONLY",
            Self::GuestPathTaken { .. } => "E-GUEST-PATH",
            Self::ResourceRange { .. } => "E-RESOURCE-RANGE",
            Self::NoUvmPath | Self::NoVsmbPath => "E-SHARE-PATH",
            Self::Share { .. } => "E-SHARE",
            Self::ShareBroken { .. } => "E-SHARE-BROKEN",
            Self::MemoryNotShared => "E-SHARE-MEMORY",
            Self::VpciDisabled => "E-VPCI-OFF",
            Self::VpciMemory => "E-VPCI-MEMORY",
            Self::NoVpciDevice { .. } => "E-VPCI-UNKNOWN",
            Self::Vpci { .. } => "E-VPCI",
            Self::Endpoint { .. } => "E-NET-ENDPOINT",
            Self::Shared(first) => first.code(),
            Self::Abandoned => "E-ABANDONED",
            Self::Stats { .. } => "E-STATS",
        }
    }
}

impl UvmError {
    /// The guest's result code, when it was the guest that refused.
    pub fn guest_result(&self) -> Option<Hresult> {
        match self {
            Self::Handshake(source)
            | Self::CreateContainer { source, .. }
            | Self::Guest { source, .. }
            | Self::Modify { source: ModifyError::Guest(source), .. } => source.hresult(),
            Self::Shared(first) => first.guest_result(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_callers_compare_have_the_seeds_texts() {
        let texts = [
            (UvmError::NetNsAlreadyAttached, "network namespace already added"),
            (UvmError::NetNsNotFound, "network namespace not found"),
            (UvmError::NoAvailableLocation, "no available location"),
            (UvmError::NotAttached, "not attached"),
            (UvmError::AlreadyAttached, "already attached"),
            (UvmError::NoScsiControllers, "no SCSI controllers configured for this utility VM"),
            (UvmError::TooManyAttachments, "too many SCSI attachments"),
            (UvmError::ScsiLayerWcowUnsupported, "SCSI attached layers are not supported for WCOW"),
            (UvmError::MaxVpmemLayerSize, "layer size is to large for VPMEM max size"),
            (UvmError::NotSupported, "not supported"),
            (UvmError::NotExited, "container not exited"),
            (
                UvmError::DeleteContainerStateUnsupported,
                "uvm guest connection does not support deleteContainerState",
            ),
        ];
        for (error, text) in texts {
            assert_eq!(error.to_string(), text);
            assert!(std::error::Error::source(&error).is_none(), "{text} is returned unwrapped");
        }
    }
}
