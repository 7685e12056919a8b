//! What is to be known of a VM in order to take it over when its owner has died, and when it is
//! written down.
//!
//! ```text
//!   reserve ─► intend: written down as underway ─► effects ─► settled ─► note: written down as it is
//! ```
//!
//! An intention is written down before anything on the host or in the guest changes, so whoever finds
//! the record knows of everything that may be there. What was underway is taken away when the VM is
//! adopted, whether it was coming or going: its caller never heard that it came, or had asked for it
//! to go. Without a [`Recorder`] nothing is written and nothing costs anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use coracle_bridge::message::{Resource, Verb};
use coracle_vmm::process::ProcessIdentity;
use coracle_vmm::{DeviceId, User, VmIdentity, VmmError};
use serde::{Deserialize, Serialize};

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::network::Spaces;
use crate::pipe::Pipes;
use crate::plug::Released;
use crate::scsi::SavedDesk;
use crate::share::SavedShares;
use crate::vpci::SavedVpci;
use crate::vpmem::SavedSlots;
use crate::vsock::{SavedVsock, Vsock};

/// A VM as it is written down. What is in it is this crate's affair.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmRecord {
    pub(crate) id: String,
    pub(crate) owner: String,
    pub(crate) identity: VmIdentity,
    /// The guest's boot; empty before it was heard of.
    #[serde(default)]
    pub(crate) guest_boot: String,
    /// The keeper of the channel, if it is a process.
    #[serde(default)]
    pub(crate) keeper: Option<ProcessIdentity>,
    pub(crate) size: Size,
    pub(crate) abilities: Abilities,
    pub(crate) counters: (u64, u64),
    pub(crate) scsi: SavedDesk,
    pub(crate) vpmem: SavedSlots,
    pub(crate) shares: SavedShares,
    pub(crate) pipes: Pipes,
    pub(crate) vpci: SavedVpci,
    pub(crate) spaces: Spaces,
    /// What carries the channel, where that is not virtio-serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vsock: Option<SavedVsock>,
}

/// What the VM has now and what it began with.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) processors: u32,
    pub(crate) first_processors: u32,
    pub(crate) max_processors: u32,
    pub(crate) memory_mib: u64,
    pub(crate) first_memory_mib: u64,
    pub(crate) max_memory_mib: u64,
}

/// What it was made with that decides what can be plugged in.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Abilities {
    pub(crate) physical_memory: bool,
    pub(crate) share_memory: bool,
    pub(crate) scsi_controllers: u8,
    pub(crate) vpci_enabled: bool,
    pub(crate) vpmem_count: u32,
    pub(crate) vpmem_size: u64,
    pub(crate) user: Option<User>,
}

impl VmRecord {
    /// The process that runs the VM.
    pub fn identity(&self) -> &VmIdentity {
        &self.identity
    }

    /// The process that carries the channel, if it is one.
    pub fn keeper(&self) -> Option<ProcessIdentity> {
        self.keeper
    }

    /// Its processors and its memory in MiB.
    pub fn size(&self) -> (u32, u64) {
        (self.size.processors, self.size.memory_mib)
    }

    /// Processors and MiB of memory it was given since it was made.
    pub fn hotplugged(&self) -> (u32, u64) {
        let Size { processors, first_processors, memory_mib, first_memory_mib, .. } = self.size;
        (processors.saturating_sub(first_processors), memory_mib.saturating_sub(first_memory_mib))
    }

    /// The process that carries the channel over AF_VSOCK, if one does.
    pub fn vsock_server(&self) -> Option<ProcessIdentity> {
        self.vsock.and_then(|vsock| vsock.server)
    }

    /// The processes that serve its shares.
    pub fn servers(&self) -> Vec<ProcessIdentity> {
        self.shares.servers()
    }

    /// Where its SCSI disks are.
    pub fn disks(&self) -> Vec<crate::scsi::slots::Slot> {
        self.scsi.slots()
    }

    /// The guest's boot.
    pub fn guest_boot(&self) -> &str {
        &self.guest_boot
    }
}

/// The record could not be written.
pub type RecordingError = Box<dyn std::error::Error + Send + Sync>;

/// Where a VM's record is kept. Calls come one after the other.
#[async_trait]
pub trait Recorder: std::fmt::Debug + Send + Sync {
    /// Writes the record so that it outlives this process.
    async fn record(&self, vm: VmRecord) -> Result<(), RecordingError>;
}

impl UtilityVm {
    /// The VM as it is now, for [`UtilityVm::adopt`].
    pub fn record(&self) -> VmRecord {
        self.machine.record()
    }
}

impl Machine {
    pub(crate) fn record(&self) -> VmRecord {
        VmRecord {
            id: self.id.clone(),
            owner: self.owner.clone(),
            identity: self.vm.identity().clone(),
            guest_boot: self.guest_boot.get().cloned().unwrap_or_default(),
            keeper: self.keeper_identity(),
            size: Size {
                processors: self.processors.load(Ordering::Relaxed),
                first_processors: self.first_processors,
                max_processors: self.host.max_processors,
                memory_mib: self.memory_mib.load(Ordering::Relaxed),
                first_memory_mib: self.first_memory_mib,
                max_memory_mib: self.host.max_memory_mib,
            },
            abilities: Abilities {
                physical_memory: self.physical_memory,
                share_memory: self.host.share_memory,
                scsi_controllers: self.scsi_controllers,
                vpci_enabled: self.vpci_enabled,
                vpmem_count: self.vpmem_count,
                vpmem_size: self.vpmem_size,
                user: self.host.user,
            },
            counters: self.counters.read(),
            scsi: locked(&self.scsi).save(),
            vpmem: locked(&self.vpmem).save(),
            shares: locked(&self.shares).save(),
            pipes: locked(&self.pipes).clone(),
            vpci: locked(&self.vpci).save(),
            spaces: locked(&self.spaces).clone(),
            vsock: locked(&self.vsock).as_ref().map(Vsock::save),
        }
    }

    /// Writes down what is about to happen. Without that it must not.
    pub(crate) async fn intend(&self, operation: &'static str) -> Result<()> {
        self.write_down().await.map_err(|source| UvmError::Record { operation, source })
    }

    /// Writes down what has happened. It has, whatever comes of the writing.
    pub(crate) async fn note(&self) {
        if let Err(error) = self.write_down().await {
            tracing::error!(vm = self.id, %error, "cannot write down what has changed");
        }
    }

    async fn write_down(&self) -> Result<(), RecordingError> {
        let Some(recorder) = &self.host.recorder else { return Ok(()) };
        // The later record is of the later state. Never closed.
        let _turn = self.recording.acquire().await;
        recorder.record(self.record()).await
    }

    /// Takes away all that was underway when the former owner died. What cannot be taken away stays,
    /// and is told in the log: the VM is well without.
    pub(crate) async fn clear(self: &Arc<Self>, saved: &VmRecord) {
        for (namespace, endpoints) in saved.spaces.underway() {
            if let Err(error) = self.remove_leftovers(&namespace, &endpoints).await {
                tracing::error!(namespace, %error, "an endpoint nobody wants stays");
            }
        }
        self.clear_shares(&saved.shares).await;
        self.clear_pipes().await;
        self.clear_vpci(saved.vpci.underway()).await;
        self.clear_scsi(&saved.scsi).await;
        for path in saved.vpmem.underway() {
            let released = locked(&self.vpmem).shelf.release(&path);
            if let Released::Last(slot) = released {
                self.clear_pmem(&path, &slot).await;
            }
        }
        self.note().await;
    }

    /// Has the guest forget something it may never have heard of.
    pub(crate) async fn forget_in_guest(&self, what: &str, resource: Resource) {
        if let Err(error) = self.ask_guest(Verb::Remove, resource).await {
            tracing::debug!(what, %error, "the guest has nothing to forget");
        }
    }

    /// Unplugs a device that may never have been plugged in.
    pub(crate) async fn unplug_leftover(&self, id: &DeviceId) {
        match self.vm.unplug(id, self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => {}
            Err(error) => tracing::error!(device = %id, %error, "a device nobody wants stays"),
        }
    }
}
