//! From create to close: who owns what of a VM, and in which order it goes.
//!
//! A [`UtilityVm`] is a handle that can be cloned. Behind all handles stands one [`Machine`] with
//! everything that belongs to the VM: the monitor's process, the run folder and its sockets, the
//! keeper of the channel, the connection to the guest, the output handler's task. One task, the
//! watcher, waits for the VM's end and takes the guest connection down with it, whoever caused
//! it; when the last handle is dropped without a close, it closes the VM.
//!
//! Everything is taken down in the reverse of the order it was put up, by [`end`] alone.

mod adopt;
mod bury;
mod create;
mod end;
mod keeper;
mod life;
mod race;
mod run_dir;
mod start;
mod watch;

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use coracle_bridge::channel::{ChannelDir, ChannelListener};
use coracle_bridge::client::GuestConnection;
use coracle_bridge::message::GuestDefinedCapabilities;
use coracle_vmm::{ExitReason, Vm};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::task::{AbortHandle, JoinHandle};

use crate::counters::Counters;
use crate::network::Spaces;
use crate::options::{ColdDisk, HostOptions, OutputHandler};
use crate::pipe::Pipes;
use crate::scsi::Desk;
use crate::share::Shares;
use crate::state::State;
use crate::timeline::Clock;
use crate::vpci::Vpci;
use crate::vpmem::Slots;
use crate::vsock::Vsock;
use life::Life;

pub use bury::bury;
pub use keeper::KeeperStartError;

/// A VM ended in a way nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the VM ended: {0}")]
pub struct UnexpectedExit(pub ExitReason);

/// A virtual machine and everything that is plugged into it.
///
/// Made by [`UtilityVm::create_lcow`]; started, used, ended by [`UtilityVm::close`]. Cloning gives
/// another handle of the same VM. When the last handle goes without a close, the VM is closed in
/// the background, unless it may outlive its owner ([`HostOptions::die_with_owner`]): then it is let
/// go of, and somebody else may adopt it.
#[derive(Debug, Clone)]
#[doc(alias = "UtilityVM")]
pub struct UtilityVm {
    pub(crate) machine: Arc<Machine>,
    /// Counts the handles, which the watcher's own reference to the machine must not.
    _tie: Arc<Tie>,
}

/// Tells the watcher that nobody holds the VM any more.
#[derive(Debug)]
struct Tie(Arc<Machine>);

impl Drop for Tie {
    fn drop(&mut self) {
        self.0.abandoned.notify_one();
    }
}

/// What all handles of a VM share.
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) owner: String,
    /// What it has now, and what it was made with.
    pub(crate) processors: AtomicU32,
    pub(crate) first_processors: u32,
    /// Memory in MiB: what it has now, and what it was made with.
    pub(crate) memory_mib: AtomicU64,
    pub(crate) first_memory_mib: u64,
    pub(crate) physical_memory: bool,
    pub(crate) vm: Box<dyn Vm>,
    pub(crate) channel: ChannelDir,
    pub(crate) life: Life,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    pub(crate) host: HostOptions,
    pub(crate) scsi_controllers: u8,
    pub(crate) scsi: Mutex<Desk>,
    pub(crate) shares: Mutex<Shares>,
    pub(crate) pipes: Mutex<Pipes>,
    pub(crate) vpci: Mutex<Vpci>,
    pub(crate) spaces: Mutex<Spaces>,
    /// None: the channel goes over virtio-serial.
    pub(crate) vsock: Mutex<Option<Vsock>>,
    /// Held by whoever changes the networks.
    pub(crate) network_turn: Semaphore,
    pub(crate) vpci_enabled: bool,
    pub(crate) vpmem: Mutex<Slots>,
    pub(crate) vpmem_count: u32,
    /// The largest layer, in bytes.
    pub(crate) vpmem_size: u64,
    output_handler: Option<OutputHandler>,
    /// The protocol's version and what the guest can do, from the handshake on.
    pub(crate) capabilities: OnceLock<(u32, GuestDefinedCapabilities)>,
    /// Taken by start, or by close if there was none.
    listeners: Mutex<Listeners>,
    guest: Mutex<Option<GuestConnection>>,
    /// The guest's boot, from the handshake on.
    pub(crate) guest_boot: OnceLock<String>,
    /// Held by whoever writes the VM down.
    pub(crate) recording: Semaphore,
    output: Mutex<Option<JoinHandle<()>>>,
    keeper: Mutex<Option<keeper::RunningKeeper>>,
    run_dir: Mutex<Option<run_dir::RunDir>>,
    /// What goes on only as long as somebody holds the VM.
    while_held: Mutex<Vec<AbortHandle>>,
    /// The last handle is gone.
    abandoned: Notify,
    /// A start was given up half-way.
    start_abandoned: Notify,
    closed: OnceCell<()>,
}

/// The sockets the guest dials at boot, bound before it can.
#[derive(Debug, Default)]
struct Listeners {
    entropy: Option<ChannelListener>,
    log: Option<ChannelListener>,
    bridge: Option<ChannelListener>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("id", &self.id).field("life", &self.life).finish()
    }
}

impl Machine {
    /// The guest connection, if there is one.
    pub(crate) fn guest(&self) -> Option<GuestConnection> {
        locked(&self.guest).clone()
    }

    /// Keeps the guest connection and what was agreed on.
    fn remember(&self, guest: GuestConnection) {
        let agreed = (guest.protocol(), *guest.capabilities());
        // There is one handshake in the life of a VM.
        let _ = self.capabilities.set(agreed);
        let _ = self.guest_boot.set(guest.boot_id().unwrap_or_default().to_owned());
        *locked(&self.guest) = Some(guest);
    }

    /// Who carries the channel, if that is a process.
    pub(crate) fn keeper_identity(&self) -> Option<coracle_vmm::process::ProcessIdentity> {
        locked(&self.keeper).as_ref().and_then(keeper::RunningKeeper::identity)
    }

    pub(crate) fn cold_disks(&self) -> &[ColdDisk] {
        &self.host.cold_disks
    }
}

impl UtilityVm {
    /// Where the VM is in its life.
    pub fn state(&self) -> State {
        self.machine.life.state()
    }

    /// Whether a process that carries the channel is gone: the guest is out of reach then, and the VM may go on.
    /// Who adopts it has another.
    pub fn is_channel_gone(&self) -> bool {
        let keeper = self.machine.keeper_identity();
        keeper.is_some_and(|keeper| !keeper.is_alive()) || self.machine.vsock_is_dead()
    }
}

/// What a mutex guards here is replaced whole, so a panic elsewhere cannot leave it half-written.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
