//! Create: from options to a VM that exists and stands still.
//!
//! Nothing on the host changes before the options are judged. Then, in this order: the run
//! folder, the sockets the guest will dial (all of them before it can), the monitor's process
//! with the VM paused, the keeper of the channel, the watcher. What was made before a failure is
//! undone by its own drop, the VM by a kill.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use coracle_bridge::channel::{AREA_FILE, ChannelDir, ChannelListener};
use coracle_bridge::port;
use coracle_vmm::accel;
use coracle_vmm::qemu::{Qemu, host_tsc_khz};
use coracle_vmm::{Vm, VmConfig, Vmm, VmmError};
use tokio::sync::{Notify, OnceCell, Semaphore};
use uuid::Uuid;

use super::keeper::RunningKeeper;
use super::life::Life;
use super::run_dir::RunDir;
use super::{Listeners, Machine, Tie, UtilityVm, watch};
use crate::counters::Counters;
use crate::description::command_line::Processor;
use crate::description::{Place, Surroundings, VmDescription, build, lower};
use crate::errors::{Result, UvmError};
use crate::options::{ChannelBacking, OptionsLcow, OptionsWcow, default_run_dir};
use crate::timeline::{Clock, Stage};
use crate::validate::{HostFacts, check_lcow, check_wcow, exists_on_host};
use crate::vpmem::Slots;
use crate::vsock::Vsock;

impl UtilityVm {
    /// Creates a Linux VM on QEMU. It exists and does not run yet.
    ///
    /// # Errors
    /// Options that no VM can be made from, with the seed's texts; whatever the host refuses.
    /// Nothing is left behind.
    #[doc(alias = "CreateLCOW")]
    pub async fn create_lcow(opts: OptionsLcow) -> Result<Self> {
        let qemu = match &opts.host.verdicts {
            Some(folder) => Qemu::new().with_verdicts(folder),
            None => Qemu::new(),
        };
        let qemu = qemu.with_effects(opts.host.effects.clone());
        Self::create_lcow_with(Arc::new(qemu), opts).await
    }

    /// Creates a Linux VM on this machine monitor.
    ///
    /// # Errors
    /// As [`UtilityVm::create_lcow`].
    pub async fn create_lcow_with(vmm: Arc<dyn Vmm>, mut opts: OptionsLcow) -> Result<Self> {
        let clock = Clock::default();
        clock.mark(Stage::Create);
        if opts.options.id.is_empty() {
            opts.options.id = Uuid::new_v4().to_string();
        }
        opts.host.share_memory |= opts.host.channel != ChannelBacking::VirtioSerial;
        let host = HostFacts::detect();
        check_lcow(&opts, &host, exists_on_host)?;
        warn_of_changes(&opts, &host);

        let id = opts.options.id.clone();
        let processor = processor(&opts).await?;
        let run_dir = opts.host.run_dir.clone().unwrap_or_else(|| default_run_dir(&id));
        let mut run_dir = RunDir::make(run_dir)?;
        let channel = ChannelDir::new(run_dir.path());
        let listeners = bind(&channel, &opts)?;
        let now = SystemTime::now();
        let place = Place { run_dir: run_dir.path(), host, processor, now };
        let description = build(&opts, place)?;
        let config = lower(&description, &surroundings(&opts, run_dir.path(), &channel))?;

        clock.mark(Stage::Spawn);
        let (memory_mib, processors) = (config.memory.size.0, config.vcpus);
        let scsi_controllers = u8::try_from(config.scsi_controllers).unwrap_or(u8::MAX);
        let vm = launch(vmm.as_ref(), config, &opts).await?;
        clock.mark(Stage::Monitor);
        let (placement, backing) = (&opts.host.keeper, &opts.host.channel);
        let keeper = match RunningKeeper::start(placement, backing, true, &channel).await {
            Ok(keeper) => keeper,
            Err(source) => {
                end_quietly(vm.as_ref(), &opts).await;
                return Err(UvmError::Keeper { id, source });
            }
        };
        clock.mark(Stage::Channel);
        if !opts.host.die_with_owner {
            run_dir.outlive_us();
        }

        let machine = Arc::new(Machine {
            owner: opts.options.owner,
            processors: processors.into(),
            first_processors: processors,
            memory_mib: memory_mib.into(),
            first_memory_mib: memory_mib,
            physical_memory: is_physical(&description),
            vm,
            life: Life::created(listeners.log.is_some()),
            clock,
            counters: Counters::default(),
            output_handler: opts.output_handler,
            channel,
            listeners: Mutex::new(listeners),
            guest: Mutex::new(None),
            guest_boot: OnceLock::new(),
            recording: Semaphore::new(1),
            output: Mutex::new(None),
            keeper: Mutex::new(keeper),
            run_dir: Mutex::new(Some(run_dir)),
            while_held: Mutex::default(),
            abandoned: Notify::new(),
            start_abandoned: Notify::new(),
            capabilities: OnceLock::new(),
            closed: OnceCell::new(),
            scsi_controllers,
            scsi: Mutex::default(),
            shares: Mutex::default(),
            pipes: Mutex::default(),
            vpci: Mutex::default(),
            spaces: Mutex::default(),
            vsock: Mutex::new(match opts.host.channel {
                ChannelBacking::VirtioSerial => None,
                ChannelBacking::Vsock { .. } => Some(Vsock::default()),
            }),
            network_turn: Semaphore::new(1),
            vpci_enabled: opts.vpci_enabled,
            vpmem: Mutex::new(pmem_slots(&description)),
            vpmem_count: opts.vpmem_device_count,
            vpmem_size: opts.vpmem_size_bytes,
            host: opts.host,
            id,
        });
        tokio::spawn(watch::watch(machine.clone()));
        machine.note().await;
        let vm = Self { _tie: Arc::new(Tie(machine.clone())), machine };
        if let Err(error) = vm.machine.plug_vsock().await {
            vm.close().await?;
            return Err(error);
        }
        Ok(vm)
    }

    /// Checks the options of a Windows VM, and then says that this host cannot run one.
    ///
    /// # Errors
    /// Options that no VM can be made from, with the seed's texts; else
    /// [`UvmError::WindowsHostNeeded`]. Nothing on the host changes.
    #[doc(alias = "CreateWCOW")]
    pub async fn create_wcow(opts: OptionsWcow) -> Result<Self> {
        check_wcow(&opts, Path::is_dir)?;
        Err(UvmError::WindowsHostNeeded)
    }
}

/// What runs guest code, found out on a thread that may block: it can take a trial of KVM.
async fn processor(opts: &OptionsLcow) -> Result<Processor> {
    let (wish, verdicts) = (opts.host.accelerator, opts.host.verdicts.clone());
    let found = tokio::task::spawn_blocking(move || {
        let engine = accel::choose(wish, verdicts.as_deref())?.engine;
        Ok(Processor { engine, tsc_khz: host_tsc_khz() })
    });
    let failed = |source| UvmError::Launch { id: opts.options.id.clone(), source };
    // The closure does not panic, and nobody aborts it.
    found.await.unwrap_or(Err(VmmError::Gone)).map_err(failed)
}

/// The seed changes two numbers and says so in its log.
fn warn_of_changes(opts: &OptionsLcow, host: &HostFacts) {
    let options = &opts.options;
    let vm = &options.id;
    let processors = options.capped_processors(host);
    if processors != options.processor_count {
        let asked = options.processor_count;
        tracing::warn!(vm, asked, processors, "the host has fewer processors than asked for");
    }
    let memory = options.aligned_memory();
    if memory != options.memory_size_in_mb {
        let asked = options.memory_size_in_mb;
        tracing::warn!(vm, asked, memory, "memory is rounded up to an even number of MiB");
    }
}

/// Binds what the guest dials: entropy always, the log if anything is forwarded, the bridge if an
/// agent is expected.
fn bind(channel: &ChannelDir, opts: &OptionsLcow) -> Result<Listeners> {
    let listen = |wanted: bool, port: u32| -> Result<Option<ChannelListener>> {
        if !wanted {
            return Ok(None);
        }
        channel.listen(port).map(Some).map_err(|source| UvmError::HostFile {
            operation: "listen on",
            path: channel.path().join(format!("vsock_{port}")),
            source,
        })
    };
    Ok(Listeners {
        entropy: listen(true, port::ENTROPY)?,
        log: listen(opts.forward_stdout || opts.forward_stderr, port::LOG)?,
        bridge: listen(opts.use_guest_connection, port::BRIDGE)?,
    })
}

fn surroundings<'a>(
    opts: &'a OptionsLcow,
    run_dir: &'a Path,
    channel: &ChannelDir,
) -> Surroundings<'a> {
    Surroundings {
        // An id that is a UUID is the machine's own.
        id: opts.options.id.parse().unwrap_or_else(|_| Uuid::new_v4()),
        name: &opts.options.id,
        run_dir,
        control_socket: channel.path().join("control.sock"),
        streams_socket: channel.path().join("streams.sock"),
        area: match opts.host.channel {
            ChannelBacking::VirtioSerial => Some(channel.path().join(AREA_FILE)),
            ChannelBacking::Vsock { .. } => None,
        },
        cold_disks: &opts.host.cold_disks,
        user: opts.host.user,
        die_with_owner: opts.host.die_with_owner,
        cgroup: opts.host.cgroup.as_ref(),
        disk_cache: opts.host.disk_cache,
    }
}

async fn launch(vmm: &dyn Vmm, config: VmConfig, opts: &OptionsLcow) -> Result<Box<dyn Vm>> {
    let id = || opts.options.id.clone();
    match tokio::time::timeout(opts.host.create_timeout, vmm.launch(config)).await {
        Ok(launched) => launched.map_err(|source| UvmError::Launch { id: id(), source }),
        Err(_) => {
            Err(UvmError::CreateTimeout { id: id(), seconds: opts.host.create_timeout.as_secs() })
        }
    }
}

/// Ends a VM whose create has failed.
async fn end_quietly(vm: &dyn Vm, opts: &OptionsLcow) {
    match tokio::time::timeout(opts.host.cleanup_timeout, vm.kill()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "cannot end a VM whose create failed"),
        Err(_) => tracing::error!("ending a VM whose create failed took too long"),
    }
}

/// The slots with those taken that are there from power-on.
fn pmem_slots(description: &VmDescription) -> Slots {
    let mut slots = Slots::default();
    let cold = description.virtual_machine.devices.virtual_pmem.iter();
    for (number, device) in cold.flat_map(|section| &section.devices) {
        slots.occupy(*number, &device.host_path.to_string_lossy());
    }
    slots
}

fn is_physical(description: &VmDescription) -> bool {
    !description.virtual_machine.compute_topology.memory.allow_overcommit.unwrap_or(false)
}
