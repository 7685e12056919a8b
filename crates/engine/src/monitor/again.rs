//! A sandbox that is written down is started: for the first time after `create`, or again.
//!
//! Nothing of its former VM is there any more. What it was asked to have from the start it has again;
//! what was plugged in later it has not, as after a boot of a machine.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::api::SandboxView;
use super::{Ended, UNKNOWN, attend, launch};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::life::{Event, Stage};
use crate::progress::OnProgress;
use crate::record::{SandboxRecord, now};
use crate::recover;
use crate::restart::{Ending, Policy};
use crate::root::Root;
use crate::run_dir::RunDir;

/// How long a monitor that has told of the end may take to go.
const ENDING: Duration = Duration::from_secs(10);

/// A command that ran so long has not failed at once.
const LONG: Duration = Duration::from_secs(10);

/// Starts a sandbox that was created, or that has ended.
///
/// `ready` is called when its command runs. `cancel` undoes the start; later it makes way for a fresh
/// monitor.
///
/// # Errors
/// There is no such sandbox, it runs, or it cannot be started: it is as it was then.
pub async fn start(
    root: &Root,
    name: &str,
    cancel: CancellationToken,
    on_progress: OnProgress,
    ready: impl FnOnce(&SandboxView),
) -> Result<Ended, Error> {
    let room = |source| Error::Room { name: name.to_owned(), source };
    let run_dir = own_when_ended(root, name).await?;
    let Some(ledger) = Ledger::open(root, name)? else {
        run_dir.remove().map_err(room)?;
        return Err(Error::NoSandbox { name: name.to_owned() });
    };
    let before = ledger.record();
    if before.stage.after(Event::Start).is_err() || before.vm.is_some() {
        // Its monitor died, and whoever looks after it now is no longer needed here.
        drop(run_dir);
        return Err(Error::Runs { name: name.to_owned() });
    }
    begin_again(&ledger, |record| record.restarts = 0).await?;
    let started = launch_again(root, &ledger, run_dir, cancel.clone(), on_progress).await;
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            ledger.update(move |record| *record = before).await?;
            return Err(error);
        }
    };
    ready(&ledger.look(SandboxRecord::view));
    let ended = attend(root, running, cancel.clone()).await?;
    follow(root, name, ended, cancel).await
}

/// Starts the command again, as often as the policy says, when its run has ended.
pub(super) async fn follow(
    root: &Root,
    name: &str,
    mut ended: Ended,
    cancel: CancellationToken,
) -> Result<Ended, Error> {
    let mut began = Instant::now();
    let mut failures = 0;
    loop {
        if ended == Ended::Again {
            return Ok(ended);
        }
        let Some(ledger) = Ledger::open(root, name)? else { return Ok(Ended::Over) };
        if !is_due(&ledger.record(), false) {
            return Ok(Ended::Over);
        }
        if began.elapsed() > LONG {
            failures = 0;
        }
        tokio::select! {
            () = tokio::time::sleep(Policy::pause(failures)) => {}
            // Whoever comes next finds that it is due.
            () = cancel.cancelled() => return Ok(Ended::Again),
        }
        failures += 1;
        let Some(run_dir) = own(root, name)? else { return Ok(Ended::Over) };
        began = Instant::now();
        ended = run_again(root, &ledger, run_dir, cancel.clone()).await?;
    }
}

/// One further run, for a policy.
pub(super) async fn run_again(
    root: &Root,
    ledger: &Ledger,
    run_dir: RunDir,
    cancel: CancellationToken,
) -> Result<Ended, Error> {
    // Somebody may have removed or started it in the pause.
    let name = ledger.look(|record| record.name.clone());
    let Some(fresh) = Ledger::open(root, &name)? else {
        run_dir.remove().map_err(|source| Error::Room { name, source })?;
        return Ok(Ended::Over);
    };
    begin_again(&fresh, |record| record.restarts += 1).await?;
    let quiet: OnProgress = Box::new(|_| {});
    match launch_again(root, &fresh, run_dir, cancel.clone(), quiet).await {
        Ok(running) => attend(root, running, cancel).await,
        Err(error) => {
            let reason = format!("it could not be started again: {error}");
            tracing::error!(error = &error as &dyn std::error::Error, "cannot start it again");
            let failed = move |record: &mut SandboxRecord| {
                record.stage = Stage::Exited;
                record.exit_code = Some(UNKNOWN);
                record.ended = Some(now());
                record.reason = Some(reason);
                record.vm = None;
            };
            fresh.update(failed).await?;
            Ok(Ended::Over)
        }
    }
}

/// Whether the policy starts the command again.
pub(super) fn is_due(record: &SandboxRecord, is_recovery: bool) -> bool {
    let ending = Ending {
        code: record.exit_code.unwrap_or(UNKNOWN),
        was_stopped: record.patience.is_some(),
        restarts: record.restarts,
        is_recovery,
    };
    record.stage == Stage::Exited && record.order.restart.restarts(ending)
}

/// The directory of a sandbox that does not run. A monitor that has told of the end may take a moment
/// to go.
async fn own_when_ended(root: &Root, name: &str) -> Result<RunDir, Error> {
    let deadline = Instant::now() + ENDING;
    loop {
        if let Some(run_dir) = own(root, name)? {
            return Ok(run_dir);
        }
        let record = crate::ledger::read(root, name)?;
        let has_ended = record.is_some_and(|record| record.stage == Stage::Exited);
        if !has_ended || Instant::now() > deadline {
            return Err(Error::Runs { name: name.to_owned() });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn own(root: &Root, name: &str) -> Result<Option<RunDir>, Error> {
    let room = |source| Error::Room { name: name.to_owned(), source };
    RunDir::adopt(root.run(), name).map_err(room)
}

/// Writes down that it is being made, with nothing of its former run.
async fn begin_again(
    ledger: &Ledger,
    count: impl FnOnce(&mut SandboxRecord) + Send + 'static,
) -> Result<(), Error> {
    let us = coracle_uvm::process::ProcessIdentity::of_this_process().ok();
    let boot = coracle_uvm::process::host_boot_id().unwrap_or_default();
    let again = move |record: &mut SandboxRecord| {
        record.stage = record.stage.after(Event::Start).unwrap_or(record.stage);
        record.is_kept = true;
        record.monitor = us;
        record.boot = boot;
        record.patience = None;
        record.exit_code = None;
        record.ended = None;
        record.reason = None;
        record.health = None;
        record.container = None;
        record.containers.clear();
        record.plugs.clear();
        record.networks.clear();
        record.vm = None;
        count(record);
    };
    ledger.update(again).await
}

async fn launch_again(
    root: &Root,
    ledger: &Ledger,
    run_dir: RunDir,
    cancel: CancellationToken,
    on_progress: OnProgress,
) -> Result<super::Running, Error> {
    let (name, order) = ledger.look(|record| (record.name.clone(), record.order.clone()));
    // What its further containers wrote goes with them.
    let written = root.container_logs(&name, "");
    match std::fs::remove_dir_all(written) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::Log { name, source });
        }
        Ok(()) | Err(_) => {}
    }
    // What a former run left without anybody knowing.
    recover::bury(root, &ledger.record()).await?;
    launch(root, &name, &order, run_dir, ledger, cancel, on_progress).await
}
