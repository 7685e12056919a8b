//! A sandbox whose owner died, taken over.

use std::sync::Mutex;

use coracle_uvm::UtilityVm;
use coracle_uvm::container::{StdinResume, StdioResume};
use coracle_uvm::options::HostOptions;

use super::{Holdings, Sandbox};
use crate::error::Error;
use crate::further::ContainerStage;
use crate::ledger::Ledger;
use crate::logs::{Log, Stream};
use crate::network::Networks;
use crate::plug::Plugs;
use crate::process::{self, Process};
use crate::record::ContainerRecord;
use crate::root::Root;
use crate::run_dir::RunDir;
use crate::timeline::Timeline;
use crate::vm_options;

impl Sandbox {
    /// Takes over the sandbox that is written down: its VM, what is plugged in, its networks, its
    /// container and the command in it, whose output goes on where `log` ends.
    ///
    /// # Errors
    /// The VM cannot be adopted, or its guest does not hold the container any more. Nothing is taken
    /// down: it can be tried again.
    pub(crate) async fn adopt(
        root: &Root,
        run_dir: RunDir,
        ledger: Ledger,
        log: &Log,
    ) -> Result<(Self, Process), Error> {
        let record = ledger.record();
        let name = record.name.clone();
        let missing = || Error::NoContainer { name: name.clone() };
        let written_vm = record.vm.as_ref().ok_or_else(missing)?;
        let there = record.container.clone().ok_or_else(missing)?;
        let pid = there.pid.ok_or_else(missing)?;
        let spec = &record.order.sandbox;
        let mut host = HostOptions::default();
        vm_options::outlive_us(&mut host, root, &name, spec, &ledger);
        let failed = |what| {
            let name = name.clone();
            move |source| Error::Vm { name, what, source: Box::new(source) }
        };
        let vm = UtilityVm::adopt(written_vm, host).await.map_err(failed("adopt"))?;
        let container = vm.resume_container(&there.id).await;
        let container = container.map_err(failed("resume the container of"))?;
        let mut stdio = output_from(&there, log);
        if record.order.command.stdin {
            stdio.stdin = StdinResume::Fresh;
        }
        let init = process::resume(&vm, &name, &there.id, pid, stdio).await?;
        let mut containers = vec![there.id.clone()];
        let further = record.containers.iter();
        let running = further.filter(|(_, it)| it.stage() == ContainerStage::Running);
        containers.extend(running.map(|(id, _)| id.clone()));
        let plugs = Plugs::adopt(vm.clone(), ledger.clone(), &record.plugs, &containers).await;
        let networks = Networks::adopt(root, &name, &vm, ledger.clone(), &record.networks).await;
        let holdings = Holdings {
            run_dir: Some(run_dir),
            networks: Some(networks.clone()),
            vm: Some(vm.clone()),
        };
        let sandbox = Self {
            name,
            vm,
            image: record.image.clone(),
            read_only: spec.read_only,
            shm_bytes: spec.tuning.shm_bytes,
            has_scratch_disk: spec.scratch_mib.is_some(),
            plugs,
            networks,
            container: Some(container),
            init: Some(there.command),
            timeline: Timeline::since(std::time::Instant::now()),
            ledger: Some(ledger),
            holdings: Mutex::new(holdings),
        };
        Ok((sandbox, init))
    }
}

/// A terminal has one output.
pub(crate) fn output_from(container: &ContainerRecord, log: &Log) -> StdioResume {
    let [out, err] = container.log_base;
    StdioResume {
        stdout: Some(log.end(Stream::Stdout).saturating_sub(out)),
        stderr: (!container.terminal).then(|| log.end(Stream::Stderr).saturating_sub(err)),
        ..StdioResume::default()
    }
}
