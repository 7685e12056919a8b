//! A monitor that finds a sandbox whose monitor died.
//!
//! What it does is decided by [`recovery`] from the stage that was written down and from whether the
//! VM lives. Only an adoption leaves something to look after; everything else is done when it is done.

use tokio_util::sync::CancellationToken;

use super::{API_SOCKET, Ended, Running, STDIO_SOCKET, UNKNOWN, again, attend, listen, open_log};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::life::{Event, Recovery, recovery};
use crate::record::{SandboxRecord, now};
use crate::recover;
use crate::root::Root;
use crate::run_dir::RunDir;
use crate::sandbox::Sandbox;

/// Does for a sandbox what its dead monitor cannot do any more, and stays with it if it runs. Nothing
/// is done if it has a monitor, or if nothing is written down of it.
///
/// # Errors
/// The VM lives and cannot be adopted, or something cannot be taken away: it can be tried again.
pub async fn adopt(root: &Root, name: &str, cancel: CancellationToken) -> Result<Ended, Error> {
    let room = |source| Error::Room { name: name.to_owned(), source };
    let Some(run_dir) = RunDir::adopt(root.run(), name).map_err(room)? else {
        return Ok(Ended::Over);
    };
    let Some(ledger) = Ledger::open(root, name)? else {
        // It was removed while we came.
        run_dir.remove().map_err(room)?;
        return Ok(Ended::Over);
    };
    let record = ledger.record();
    let what = recovery(record.stage, record.vm_lives(), record.is_kept);
    tracing::info!(sandbox = name, stage = record.stage.name(), ?what, "recovering");
    match what {
        Recovery::Adopt => {
            take_charge(&ledger).await;
            let ended = go_on(root, run_dir, ledger, cancel.clone()).await?;
            return again::follow(root, name, ended, cancel).await;
        }
        Recovery::Start => {
            let ended = again::run_again(root, &ledger, run_dir, cancel.clone()).await?;
            return again::follow(root, name, ended, cancel).await;
        }
        Recovery::Undo | Recovery::Remove => {
            recover::bury(root, &record).await?;
            run_dir.remove().map_err(room)?;
            recover::forget(root, name)?;
        }
        Recovery::Bury => {
            let reason = lost(&record);
            let ended = move |record: &mut SandboxRecord| {
                record.stage = record.stage.after(Event::Ended).unwrap_or(record.stage);
                record.exit_code = Some(UNKNOWN);
                record.ended = Some(now());
                record.end_containers("its sandbox was lost");
                record.reason = Some(reason);
            };
            ledger.update(ended).await?;
            finish(root, &ledger, run_dir).await?;
        }
        Recovery::Finish => finish(root, &ledger, run_dir).await?,
    }
    let Some(ledger) = Ledger::open(root, name)? else { return Ok(Ended::Over) };
    if !again::is_due(&ledger.record(), !record.is_of_this_boot()) {
        return Ok(Ended::Over);
    }
    let Some(run_dir) = RunDir::adopt(root.run(), name).map_err(room)? else {
        return Ok(Ended::Over);
    };
    let ended = again::run_again(root, &ledger, run_dir, cancel.clone()).await?;
    again::follow(root, name, ended, cancel).await
}

fn lost(record: &SandboxRecord) -> String {
    if record.is_of_this_boot() {
        "its VM ended while no monitor was there".to_owned()
    } else {
        "the host was booted anew".to_owned()
    }
}

/// Takes away what is left of one whose end is written down.
async fn finish(root: &Root, ledger: &Ledger, run_dir: RunDir) -> Result<(), Error> {
    let record = ledger.record();
    recover::bury(root, &record).await?;
    let name = record.name.clone();
    run_dir.remove().map_err(|source| Error::Room { name: name.clone(), source })?;
    if record.order.remove {
        return recover::forget(root, &name);
    }
    let gone = |record: &mut SandboxRecord| {
        record.vm = None;
        record.networks.clear();
    };
    ledger.update(gone).await
}

/// Writes down who owns it now. A full disk keeps nobody from looking after what runs.
async fn take_charge(ledger: &Ledger) {
    let us = coracle_uvm::process::ProcessIdentity::of_this_process().ok();
    if let Err(error) = ledger.update(move |record| record.monitor = us).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "cannot write down who owns the sandbox now");
    }
}

async fn go_on(
    root: &Root,
    run_dir: RunDir,
    ledger: Ledger,
    cancel: CancellationToken,
) -> Result<Ended, Error> {
    let dir = run_dir.path().to_owned();
    // Clients that come now wait until it is served.
    let api = listen(&dir, API_SOCKET)?;
    let stdio = listen(&dir, STDIO_SOCKET)?;
    let (name, order) = ledger.look(|record| (record.name.clone(), record.order.clone()));
    let log = open_log(root, &name, None, order.log, order.when_full)?;
    let (sandbox, init) = Sandbox::adopt(root, run_dir, ledger.clone(), &log).await?;
    tracing::info!(sandbox = name, "adopted");
    attend(root, Running { sandbox, init, ledger, log, api, stdio }, cancel).await
}
