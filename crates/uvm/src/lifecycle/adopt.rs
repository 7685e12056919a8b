//! Adopt: from a record to a VM that runs already, whose former owner is dead.
//!
//! ```text
//!   monitor: pid, start time, UUID ─► keeper: there, or a new one ─► bridge: listen, the agent dials,
//!   a newer session, the same boot ─► tables as they were ─► what was underway is taken away
//! ```
//!
//! Nothing here ends the VM: an adoption that fails leaves it as it was, for the next try.

use std::sync::{Arc, Mutex, OnceLock};

use coracle_bridge::channel::ChannelDir;
use coracle_bridge::client::BridgeError;
use coracle_bridge::port;
use coracle_vmm::qemu::Qemu;
use coracle_vmm::{VmStatus, Vmm};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::time::timeout;

use super::keeper::RunningKeeper;
use super::life::Life;
use super::run_dir::RunDir;
use super::{Listeners, Machine, Tie, UtilityVm, watch};
use crate::counters::Counters;
use crate::errors::{Result, UvmError};
use crate::guest;
use crate::network::Spaces;
use crate::options::{ChannelBacking, HostOptions};
use crate::record::VmRecord;
use crate::scsi::Desk;
use crate::share::Shares;
use crate::timeline::Clock;
use crate::vpci::Vpci;
use crate::vpmem::Slots;
use crate::vsock::Vsock;

impl UtilityVm {
    /// Takes over a VM on QEMU that runs, as its record has it.
    ///
    /// Of `host`, what belongs to the VM itself is as it was made with, whatever is said here. A VM
    /// that stands still is let go on: its guest could not answer.
    ///
    /// # Errors
    /// [`UvmError::Adopt`] when the VM is gone or is not that one; [`UvmError::OtherGuest`];
    /// [`UvmError::GuestSilent`] after [`HostOptions::start_timeout`]. The VM goes on.
    pub async fn adopt(record: &VmRecord, host: HostOptions) -> Result<Self> {
        let qemu = Qemu::new().with_effects(host.effects.clone());
        Self::adopt_with(Arc::new(qemu), record, host).await
    }

    /// Takes over a VM on this machine monitor.
    ///
    /// # Errors
    /// As [`UtilityVm::adopt`].
    pub async fn adopt_with(
        vmm: Arc<dyn Vmm>,
        record: &VmRecord,
        mut host: HostOptions,
    ) -> Result<Self> {
        let id = record.id.clone();
        let failed = |source| UvmError::Adopt { id: id.clone(), source };
        let clock = Clock::default();
        let vm = vmm.adopt(&record.identity).await.map_err(failed)?;
        let status = vm.status().await.map_err(failed)?;

        let run_dir = record.identity.control_socket.parent().unwrap_or("/".as_ref()).to_owned();
        let channel = ChannelDir::new(&run_dir);
        let listeners = Listeners {
            entropy: None,
            log: Some(listen(&channel, port::LOG)?),
            bridge: Some(listen(&channel, port::BRIDGE)?),
        };
        // What carries the channel was decided when the VM was made.
        match (&record.vsock, &host.channel) {
            (None, _) => host.channel = ChannelBacking::VirtioSerial,
            (Some(_), ChannelBacking::Vsock { .. }) => {}
            (Some(_), _) => host.channel = ChannelBacking::Vsock { program: None },
        }
        let known = record.keeper.as_ref();
        let keeper = RunningKeeper::adopt(known, &host.keeper, &host.channel, &channel).await;
        let keeper = keeper.map_err(|source| UvmError::Keeper { id: id.clone(), source })?;

        let (size, abilities) = (record.size, record.abilities);
        host.share_memory = abilities.share_memory;
        host.user = abilities.user;
        host.max_processors = size.max_processors;
        host.max_memory_mib = size.max_memory_mib;
        host.die_with_owner = record.identity.die_with_owner;
        let machine = Arc::new(Machine {
            id: id.clone(),
            owner: record.owner.clone(),
            processors: size.processors.into(),
            first_processors: size.first_processors,
            memory_mib: size.memory_mib.into(),
            first_memory_mib: size.first_memory_mib,
            physical_memory: abilities.physical_memory,
            vm,
            life: Life::running(),
            clock,
            counters: Counters::resume(record.counters),
            output_handler: None,
            channel,
            listeners: Mutex::new(listeners),
            guest: Mutex::new(None),
            guest_boot: OnceLock::new(),
            output: Mutex::new(None),
            keeper: Mutex::new(keeper),
            run_dir: Mutex::new(Some(RunDir::of_adopted(run_dir))),
            while_held: Mutex::default(),
            abandoned: Notify::new(),
            start_abandoned: Notify::new(),
            recording: Semaphore::new(1),
            capabilities: OnceLock::new(),
            closed: OnceCell::new(),
            scsi_controllers: abilities.scsi_controllers,
            scsi: Mutex::new(Desk::restore(&record.scsi)),
            shares: Mutex::new(Shares::restore(&record.shares)),
            pipes: Mutex::new(record.pipes.clone()),
            vpci: Mutex::new(Vpci::restore(&record.vpci)),
            spaces: Mutex::new(Spaces::clone(&record.spaces)),
            vsock: Mutex::new(record.vsock.as_ref().map(Vsock::restore)),
            network_turn: Semaphore::new(1),
            vpci_enabled: abilities.vpci_enabled,
            vpmem: Mutex::new(Slots::restore(&record.vpmem)),
            vpmem_count: abilities.vpmem_count,
            vpmem_size: abilities.vpmem_size,
            host,
        });
        tokio::spawn(watch::watch(machine.clone()));
        if machine.keeper_identity() != record.keeper {
            crate::lifecycle::locked(&machine.shares).cut_off();
        }
        let vm = Self { _tie: Arc::new(Tie(machine.clone())), machine };
        if status == VmStatus::Paused {
            // A guest that stands still answers nobody.
            vm.machine.vm.resume().await.map_err(failed)?;
        }
        if vm.machine.vsock_is_dead() {
            crate::lifecycle::locked(&vm.machine.shares).cut_off();
            vm.machine.renew_vsock().await?;
        }
        tokio::select! {
            met = vm.machine.meet_guest(&record.guest_boot) => met?,
            never = vm.machine.renew_vsock_while_silent() => match never {},
        }
        vm.machine.clear(record).await;
        Ok(vm)
    }
}

fn listen(channel: &ChannelDir, port: u32) -> Result<coracle_bridge::channel::ChannelListener> {
    channel.listen(port).map_err(|source| UvmError::HostFile {
        operation: "listen on",
        path: channel.path().join(format!("vsock_{port}")),
        source,
    })
}

impl Machine {
    /// Waits for the agent's dial and takes a session with it. A dial that comes to nothing is
    /// followed by another.
    async fn meet_guest(self: &Arc<Self>, boot: &str) -> Result<()> {
        let Listeners { log, bridge, .. } = std::mem::take(&mut *super::locked(&self.listeners));
        // Ends with the VM: the agent dials it again and again.
        if let Some(log) = log {
            self.take_log_again(log);
        }
        let Some(bridge) = bridge else { return Ok(()) };
        let limit = self.host.start_timeout;
        let met = async {
            loop {
                let stream = match bridge.accept().await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::debug!(%error, "the bridge's socket");
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                        continue;
                    }
                };
                match guest::connect(self, stream).await {
                    Ok(connection) => return Ok(connection),
                    Err(BridgeError::Closed | BridgeError::Killed(_)) => {}
                    Err(error) => return Err(UvmError::Handshake(error)),
                }
            }
        };
        let connection = tokio::select! {
            met = timeout(limit, met) => met.map_err(|_| UvmError::GuestSilent {
                id: self.id.clone(),
                seconds: limit.as_secs(),
            })??,
            reason = self.life.until_exit() => {
                let source = super::UnexpectedExit(reason);
                return Err(UvmError::ExitedDuringStart { step: "adopt the VM", source });
            }
        };
        if !boot.is_empty() && connection.boot_id().is_some_and(|now| now != boot) {
            return Err(UvmError::OtherGuest { id: self.id.clone() });
        }
        self.remember(connection);
        Ok(())
    }
}
