//! One sandbox from nothing to nothing.
//!
//! ```text
//!   launch: check ─► sweep ─► run dir ─► image ─► VM (create, start, mount) ─► Sandbox
//!                                │          │            │
//!                                │          │            │ (joining networks meanwhile)
//!                                ▼          ▼            ▼
//!                              taken down in the reverse order on any failure
//!   start:  overlay ─► container ─► command                                  ─► Process
//!   exec:   command in the container                                      ─► Process
//!   close:  VM ─► scratch ─► run dir
//! ```
//!
//! Everything a sandbox holds on the host is in one place, [`Holdings`], and goes by one
//! function, [`Sandbox::release`], whoever calls it and why. A sandbox that is written down in
//! a ledger outlives the process that launched it, and another takes it over
//! ([`Sandbox::adopt`]). One that is not, such as that of a command in the foreground, goes with
//! its process: the kernel takes the VM along and the next command sweeps the directory.

pub(crate) mod adopt;
pub(crate) mod container;
mod launch;

use std::sync::{Mutex, PoisonError};

use container::Blueprint;
use coracle_image::ImageConfig;
use coracle_uvm::UtilityVm;
use coracle_uvm::container::Container;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::ledger::Ledger;
use crate::monitor::api::Diagnostics;
use crate::network::Networks;
use crate::plug::Plugs;
use crate::process::{self, Process};
use crate::progress::OnProgress;
use crate::record::ContainerRecord;
use crate::root::Root;
use crate::run_dir::{RunDir, sweep};
use crate::spec::{Command, Resolved, SandboxSpec};
use crate::timeline::{Phase, Timeline};

/// Where the guest mounts the read-only root file system.
const LAYER: &str = "/run/layers/root";
/// Where the guest mounts the scratch disk, if there is one.
const SCRATCH: &str = "/run/mounts/scratch";

/// A running VM with a root file system mounted, ready for a command.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    vm: UtilityVm,
    image: ImageConfig,
    read_only: bool,
    shm_bytes: Option<u64>,
    has_scratch_disk: bool,
    plugs: Plugs,
    networks: Networks,
    container: Option<Container>,
    init: Option<Resolved>,
    timeline: Timeline,
    ledger: Option<Ledger>,
    holdings: Mutex<Holdings>,
}

/// What a launch needs to know.
pub(crate) struct Launch<'a> {
    pub(crate) root: &'a Root,
    pub(crate) name: String,
    pub(crate) spec: SandboxSpec,
    /// Undoes it.
    pub(crate) cancel: CancellationToken,
    /// Where it is written down; then the VM outlives this process.
    pub(crate) ledger: Option<Ledger>,
}

/// Takes away what dead owners left of sandboxes that nothing is written down of.
pub(crate) async fn sweep_all(root: &Root) {
    let of = root.clone();
    let swept = tokio::task::spawn_blocking(move || {
        for name in sweep(of.run(), |name| of.state(name).exists()) {
            tracing::info!(sandbox = name, "swept what a dead owner left");
            crate::recover::remove_cgroup(&of, &name);
        }
        crate::network::sweep(&of);
    });
    // Sweeping does not panic; if it did, what is left is left.
    drop(swept.await);
}

/// What a sandbox holds on the host, in the order it was acquired.
#[derive(Debug, Default)]
struct Holdings {
    run_dir: Option<RunDir>,
    networks: Option<Networks>,
    vm: Option<UtilityVm>,
}

impl Sandbox {
    /// Makes the sandbox: image, VM, mounts.
    ///
    /// `cancel` may be triggered at any time; everything done so far is then undone and the
    /// result is [`Error::Interrupted`]. Not cancel safe otherwise: dropping the future leaves
    /// the undoing to the death of the process.
    ///
    /// # Errors
    /// Whatever keeps the VM from running; nothing is left behind then.
    pub async fn launch(
        root: &Root,
        spec: SandboxSpec,
        timeline: Timeline,
        cancel: CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Sandbox, Error> {
        spec.check()?;
        let name = spec.name.clone().unwrap_or_else(random_name);
        if root.state(&name).exists() {
            return Err(Error::Exists { name });
        }
        sweep_all(root).await;
        let run_dir = RunDir::create(root.run(), &name)
            .map_err(|source| Error::Room { name: name.clone(), source })?;
        let launch = Launch { root, name, spec, cancel, ledger: None };
        Self::launch_in(launch, run_dir, timeline, on_progress).await
    }

    /// The same in a directory that is there, and written down step by step.
    pub(crate) async fn launch_in(
        launch: Launch<'_>,
        run_dir: RunDir,
        timeline: Timeline,
        on_progress: OnProgress,
    ) -> Result<Sandbox, Error> {
        let mut holdings = Holdings { run_dir: Some(run_dir), ..Holdings::default() };
        let result = launch::build(&launch, timeline, on_progress, &mut holdings).await;
        let Launch { name, spec, cancel, ledger, .. } = launch;
        let holdings = Mutex::new(holdings);
        match result {
            Ok(built) => Ok(Sandbox {
                name,
                vm: built.vm,
                image: built.image,
                read_only: spec.read_only,
                shm_bytes: spec.tuning.shm_bytes,
                has_scratch_disk: spec.scratch_mib.is_some(),
                plugs: built.plugs,
                networks: built.networks,
                container: None,
                init: None,
                timeline: built.timeline,
                ledger,
                holdings,
            }),
            Err(error) => {
                if let Err(undoing) = release(&holdings, &name).await {
                    tracing::warn!(sandbox = name, error = %undoing, "cannot undo everything");
                }
                Err(if cancel.is_cancelled() { Error::Interrupted } else { error })
            }
        }
    }

    /// Starts a command in a container of its own.
    ///
    /// # Errors
    /// The container cannot be made or the command not be started.
    pub async fn start(&mut self, command: &Command) -> Result<Process, Error> {
        let resolved = command.resolve(&self.image)?;
        let program = resolved.args[0].clone();
        if let Some(ledger) = &self.ledger {
            let there = ContainerRecord {
                id: self.name.clone(),
                bundle: container::bundle(&self.name),
                pid: None,
                command: resolved.clone(),
                terminal: command.terminal.is_some(),
                log_base: [0, 0],
            };
            ledger.update(|record| record.container = Some(there)).await?;
        }
        let from = Blueprint {
            id: &self.name,
            layer: LAYER,
            scratch: &self.scratch_of(&self.name),
            read_only: self.read_only,
            command,
            resolved: &resolved,
        };
        let container = self.make(&from).await?;
        let process = process::start(&self.vm, &self.name, &container, &program, command).await?;
        self.plugs.container_runs(container.id().as_str());
        self.container = Some(container);
        self.init = Some(resolved);
        self.timeline.reach(Phase::Container);
        Ok(process)
    }

    /// Starts another command in the container. What it does not say is as the container's own
    /// command has it.
    ///
    /// # Errors
    /// There is no container; the command cannot be started.
    pub async fn exec(&self, command: &Command) -> Result<Process, Error> {
        let (Some(container), Some(init)) = (&self.container, &self.init) else {
            return Err(Error::NoContainer { name: self.name.clone() });
        };
        self.exec_in(container, init, command).await
    }

    /// What its image says of how to run it.
    pub(crate) fn image(&self) -> &ImageConfig {
        &self.image
    }

    /// What is plugged in.
    pub fn plugs(&self) -> &Plugs {
        &self.plugs
    }

    /// The networks it is on.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The container's command has ended.
    pub fn container_ended(&self) {
        if let Some(container) = &self.container {
            self.plugs.container_ended(container.id().as_str());
        }
    }

    /// The process of the VM on the host.
    pub fn vm_pid(&self) -> u32 {
        self.vm.vm_identity().pid
    }

    /// What there is to see when it does not do what it should; what cannot be had says why.
    pub(crate) async fn diagnostics(&self, ask_guest: bool) -> Diagnostics {
        let stacks = match ask_guest {
            true => self.vm.dump_stacks().await.unwrap_or_else(|error| format!("none: {error}\n")),
            false => "none: it is paused\n".to_owned(),
        };
        Diagnostics {
            guest_stacks: stacks,
            console: self.vm.console_tail().await,
            vm_status: self.vm.status().await,
        }
    }

    /// Its VM.
    pub(crate) fn vm(&self) -> &UtilityVm {
        &self.vm
    }

    /// Its container, once its command was started.
    pub(crate) fn container(&self) -> Option<&Container> {
        self.container.as_ref()
    }

    /// Stops the VM's processors, or lets them go on.
    ///
    /// # Errors
    /// The VM does not run, or refuses.
    pub async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        if paused {
            return self.vm.pause().await.map_err(|source| self.refused("pause", source));
        }
        self.vm.resume().await.map_err(|source| self.refused("resume", source))
    }

    pub(crate) fn refused(&self, what: &'static str, source: coracle_uvm::UvmError) -> Error {
        Error::Vm { name: self.name.clone(), what, source: Box::new(source) }
    }

    pub(crate) fn indescribable(&self, source: oci_spec::OciSpecError) -> Error {
        Error::Specification { name: self.name.clone(), source }
    }

    /// When each phase was reached.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The same, to note more.
    pub fn timeline_mut(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command of its container; empty before the start.
    pub fn command(&self) -> &[String] {
        self.init.as_ref().map_or(&[], |init| &init.args)
    }

    /// Ends the VM and leaves its networks; the run directory stays.
    ///
    /// # Errors
    /// The VM cannot be ended, or a network not be left.
    pub async fn power_off(&self) -> Result<(), Error> {
        end(&self.holdings, &self.name).await
    }

    /// Ends the VM and gives back everything on the host. Doing it again does nothing.
    ///
    /// # Errors
    /// Something could not be given back; the rest was.
    pub async fn release(&self) -> Result<(), Error> {
        release(&self.holdings, &self.name).await
    }

    /// The same, for the last time.
    ///
    /// # Errors
    /// As [`Sandbox::release`].
    pub async fn close(self) -> Result<(), Error> {
        self.release().await
    }
}

/// Gives everything back, the last first. Goes on after a failure and returns the first.
async fn release(holdings: &Mutex<Holdings>, name: &str) -> Result<(), Error> {
    let outcome = end(holdings, name).await;
    let dir = holdings.lock().unwrap_or_else(PoisonError::into_inner).run_dir.take();
    let Some(dir) = dir else { return outcome };
    // The scratch disk lies in it and goes with it.
    let removed = dir.remove();
    outcome.and(removed.map_err(|source| Error::Room { name: name.to_owned(), source }))
}

/// Ends the VM and leaves its networks: their ports and addresses are for others now.
async fn end(holdings: &Mutex<Holdings>, name: &str) -> Result<(), Error> {
    let networks = holdings.lock().unwrap_or_else(PoisonError::into_inner).networks.clone();
    // Neither waits for the other: a sandbox is cut off before its rules go.
    let leaving = async {
        match networks {
            Some(networks) => networks.leave_all().await,
            None => Ok(()),
        }
    };
    let (ended, left) = tokio::join!(end_vm(holdings, name), leaving);
    ended.and(left)
}

async fn end_vm(holdings: &Mutex<Holdings>, name: &str) -> Result<(), Error> {
    let vm = holdings.lock().unwrap_or_else(PoisonError::into_inner).vm.take();
    let Some(vm) = vm else { return Ok(()) };
    let closed = vm.close().await;
    closed.map_err(|source| Error::Close { name: name.to_owned(), source: Box::new(source) })
}

/// Twelve hexadecimal digits.
pub fn random_name() -> String {
    let mut name = uuid::Uuid::new_v4().simple().to_string();
    name.truncate(12);
    name
}
