//! One running VM behind its control socket: the implementation of [`Vm`] that QEMU and the fake
//! share.
//!
//! ```text
//!             launch / adopt
//!                   |
//!                   v        SHUTDOWN, GUEST_PANICKED
//!               [ alive ] -------------------------> [ ending ]
//!                   |                                    | console read, "quit"
//!                   | process gone                       | process gone
//!                   v                                    v
//!               [ ended ] <------------------------------+
//! ```
//! A guest that shuts down leaves its monitor paused, not gone: so the console's last lines can
//! still be read, and an owner that was dead at the time learns of it when it adopts the VM. One
//! task per VM, the supervisor, sees all this through and publishes the reason at the end;
//! everyone else only reads. What is plugged in is never recorded here: the monitor is asked,
//! which cannot be wrong after an adoption.

mod adopt;
pub(crate) mod console;
mod debris;
mod exit;
mod hotplug;
mod resources;
pub(crate) mod screen;
mod supervisor;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(crate) use adopt::adopt;
use async_trait::async_trait;
pub(crate) use console::Console;
pub(crate) use debris::Debris;
use tokio::{
    net::{UnixListener, unix::pipe::Receiver},
    sync::{broadcast, watch},
    task::JoinHandle,
};

use crate::{
    Device, DeviceId, ExitReason, MiB, PciAddress, Vm, VmEvent, VmIdentity, VmStats, VmStatus,
    VmmError,
    effect::Effects,
    process::{Process, ProcessStat, Tail, ticks, uptime},
    qmp::{
        Client, QmpError,
        command::{Command, Cont, QueryStatus, RingbufRead, Stop},
    },
};

/// How long the monitor may take to answer one command.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Beside the control socket, the socket of a console's serial port.
pub(crate) const TTY_SOCKET: &str = "tty.sock";

/// The id of the ring that keeps the console's end, here and on the command line.
pub(crate) const CONSOLE_RING: &str = "console";

/// Its size in bytes, a power of two.
pub(crate) const CONSOLE_RING_SIZE: u64 = 65_536;

/// A VM and the handle's part in it.
#[derive(Debug)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
}

/// What the handle and the supervisor share.
#[derive(Debug)]
struct Shared {
    identity: VmIdentity,
    process: Process,
    effects: Effects,
    /// The present connection; none while it is being made again.
    control: watch::Sender<Option<Client>>,
    events: broadcast::Sender<VmEvent>,
    exit: watch::Sender<Option<ExitReason>>,
    /// The handle asked for the end.
    killed: AtomicBool,
    console: Mutex<Tail>,
    /// Sockets of ports plugged in through this handle.
    sockets: Mutex<BTreeMap<DeviceId, PathBuf>>,
}

/// What the owner of a VM holds open besides the control socket.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The reading end of its stderr; an adopter may lack the right to it.
    pub(crate) stderr: Option<Receiver>,
    /// Its console, where a person may dial it.
    pub(crate) console: Option<Console>,
    /// Where clients of its screen dial.
    pub(crate) screen: Option<UnixListener>,
}

impl Machine {
    /// Takes charge of a VM whose control socket has just answered.
    pub(crate) fn start(
        identity: VmIdentity,
        process: Process,
        control: Client,
        attached: Attached,
        effects: Effects,
    ) -> Self {
        let shared = Arc::new(Shared {
            identity,
            process,
            effects,
            control: watch::channel(Some(control)).0,
            events: broadcast::channel(256).0,
            exit: watch::channel(None).0,
            killed: AtomicBool::new(false),
            console: Mutex::new(Tail::default()),
            sockets: Mutex::new(BTreeMap::new()),
        });
        let heard = shared.control.borrow().as_ref().map(Client::events);
        let supervisor = tokio::spawn(supervisor::supervise(shared.clone(), attached, heard));
        Self { shared, supervisor }
    }

    /// Runs a change of several steps in a task of its own: a caller that goes away half-way
    /// leaves it whole or undone. Each step has its time-out, so the task ends.
    async fn to_the_end(
        &self,
        change: impl Future<Output = Result<(), VmmError>> + Send + 'static,
    ) -> Result<(), VmmError> {
        // It fails only when the runtime is shut down, and with it all we hold.
        tokio::spawn(change).await.unwrap_or(Err(VmmError::Gone))
    }

    async fn control<C: Command>(&self, command: C) -> Result<C::Reply, VmmError> {
        let client = self.shared.client().await?;
        self.shared.result(C::NAME, client.run(command).await)
    }
}

impl Shared {
    /// The connection, waiting while it is being made again.
    async fn client(&self) -> Result<Client, VmmError> {
        let mut control = self.control.subscribe();
        let mut exit = self.exit.subscribe();
        tokio::select! {
            biased;
            _ = exit.wait_for(Option::is_some) => Err(VmmError::Gone),
            client = control.wait_for(|client| client.as_ref().is_some_and(|c| !c.is_closed())) => {
                client.ok().and_then(|client| client.clone()).ok_or(VmmError::Gone)
            }
        }
    }

    fn result<T>(&self, operation: &str, result: Result<T, QmpError>) -> Result<T, VmmError> {
        result.map_err(|error| self.failure(operation, error))
    }

    /// Names the operation in a failure; of a VM that is dead, only that matters.
    fn failure(&self, operation: &str, source: QmpError) -> VmmError {
        if self.exit.borrow().is_some() || self.process.is_dead() {
            return VmmError::Gone;
        }
        VmmError::Control { operation: operation.to_owned(), source }
    }

    /// Takes what the console's ring holds into our own tail and returns that.
    async fn drain_console(&self, client: &Client) -> String {
        let read = RingbufRead { device: CONSOLE_RING, size: CONSOLE_RING_SIZE };
        let fresh = client.run(read).await;
        match fresh {
            Ok(text) => self.console().push(text.as_bytes()),
            Err(error) => tracing::debug!(%error, "console not readable"),
        }
        self.console_text()
    }

    fn console(&self) -> MutexGuard<'_, Tail> {
        // A panic between two pushes leaves the bytes as good as they were.
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<DeviceId, PathBuf>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn console_text(&self) -> String {
        self.console().text()
    }
}

#[async_trait]
impl Vm for Machine {
    fn identity(&self) -> &VmIdentity {
        &self.shared.identity
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.shared.effects.announce("vm.resume")?;
        self.control(Cont {}).await.map(|_| ())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.shared.effects.announce("vm.pause")?;
        self.control(Stop {}).await.map(|_| ())
    }

    async fn status(&self) -> Result<VmStatus, VmmError> {
        match self.control(QueryStatus {}).await {
            Ok(state) => Ok(exit::status_of(&state.status)),
            Err(VmmError::Gone) => Ok(VmStatus::Exited),
            Err(error) => Err(error),
        }
    }

    async fn plug(&self, device: Device) -> Result<DeviceId, VmmError> {
        let (id, shared) = (device.id().clone(), self.shared.clone());
        self.to_the_end(async move { hotplug::plug(&shared, device).await }).await?;
        Ok(id)
    }

    async fn unplug(&self, id: &DeviceId, timeout: Duration) -> Result<(), VmmError> {
        let (id, shared) = (id.clone(), self.shared.clone());
        self.to_the_end(async move { hotplug::unplug(&shared, &id, timeout).await }).await
    }

    async fn add_vcpus(&self, wanted: u32) -> Result<(), VmmError> {
        let shared = self.shared.clone();
        self.to_the_end(async move { resources::add_vcpus(&shared, wanted).await }).await
    }

    async fn set_extra_memory(&self, wanted: MiB, limit: Duration) -> Result<(), VmmError> {
        let shared = self.shared.clone();
        let set = async move { resources::set_extra_memory(&shared, wanted, limit).await };
        self.to_the_end(set).await
    }

    async fn pmem_address(&self, id: &DeviceId) -> Result<u64, VmmError> {
        hotplug::pmem_address(&self.shared, id).await
    }

    async fn pci_address(&self, id: &DeviceId) -> Result<PciAddress, VmmError> {
        hotplug::pci_address(&self.shared, id).await
    }

    fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.shared.events.subscribe()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        if self.shared.exit.borrow().is_some() {
            return Ok(());
        }
        self.shared.effects.announce("vm.kill")?;
        self.shared.killed.store(true, Ordering::Release);
        let pid = self.shared.process.pid();
        self.shared.process.kill().map_err(|source| VmmError::Host {
            operation: "kill process",
            object: pid.to_string(),
            source,
        })?;
        self.wait().await;
        Ok(())
    }

    async fn wait(&self) -> ExitReason {
        let mut exit = self.shared.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|reason| reason.clone()).unwrap_or(ExitReason::Killed)
    }

    async fn console_tail(&self) -> String {
        match self.shared.client().await {
            Ok(client) => self.shared.drain_console(&client).await,
            Err(_) => self.shared.console_text(),
        }
    }

    async fn stats(&self) -> Result<VmStats, VmmError> {
        let pid = self.shared.process.pid();
        let stat = ProcessStat::read(pid).map_err(|_| VmmError::Gone)?;
        if stat.start_time != self.shared.process.start_time() {
            return Err(VmmError::Gone);
        }
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        Ok(VmStats {
            resident_bytes: stat.resident_pages.saturating_mul(page),
            cpu_time: ticks(stat.cpu_ticks),
            uptime: uptime().saturating_sub(ticks(stat.start_time)),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.shared.identity.die_with_owner {
            // The supervisor stays until the process is gone and cleans up after it.
            self.shared.killed.store(true, Ordering::Release);
            if let Err(error) = self.shared.process.kill() {
                tracing::warn!(%error, "VM not killed");
            }
        } else {
            // Closes the control socket, so that the next owner can have it.
            self.supervisor.abort();
        }
    }
}
