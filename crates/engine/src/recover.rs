//! What a sandbox leaves behind whose VM is gone or was never whole, and how all of it goes.
//!
//! Nothing here asks the ledger alone: processes are found by what their environment says of them,
//! networks by their own records, devices by where they were taken from. All of it can be done again.

use std::path::Path;
use std::time::Duration;

use coracle_uvm::process::{PART, Process, ProcessIdentity, all_processes};

use crate::client::{self, Client, ClientError};
use crate::error::Error;
use crate::events;
use crate::ledger::{self, Ledger};
use crate::life::{Event, Stage};
use crate::network;
use crate::record::SandboxRecord;
use crate::root::Root;
use crate::run_dir::RunDir;

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Takes away what is left of a sandbox's VM and all it held on the host. The caller owns its run
/// directory, which is removed by whoever holds it.
///
/// # Errors
/// The first thing that could not be taken away; the others were.
pub(crate) async fn bury(root: &Root, record: &SandboxRecord) -> Result<(), Error> {
    let name = &record.name;
    let parts = root.run().join(name).join("vm");
    let failed = |source| Error::Leftovers { name: name.clone(), source };
    let mut outcome = end_processes(&parts).await.map_err(|source| failed(source.into()));
    if let Some(vm) = &record.vm {
        let buried = coracle_uvm::bury(vm, record.is_of_this_boot(), GONE).await;
        outcome = outcome.and(buried.map_err(|source| failed(source.into())));
    }
    // Nobody may know of it yet: it was made a moment before its VM.
    remove_cgroup(root, name);
    let (of, sandbox) = (root.clone(), name.clone());
    let left = tokio::task::spawn_blocking(move || network::leave_everything(&of, &sandbox)).await;
    // Leaving does not panic; if it did, the next try leaves.
    outcome.and(left.unwrap_or(Ok(())))
}

/// Removes the control group of a sandbox whose processes are gone, if there is one. That one stays
/// is for `gc` to tell.
pub(crate) fn remove_cgroup(root: &Root, name: &str) {
    if let Err(error) = coracle_uvm::cgroup::remove(&root.cgroup(name)) {
        tracing::warn!(sandbox = name, %error, "a control group stays");
    }
}

/// Ends every process that says of itself that it is part of a VM in this folder.
async fn end_processes(folder: &Path) -> std::io::Result<()> {
    for identity in parts_of(folder) {
        if let Some(process) = Process::find(&identity)? {
            process.kill()?;
            let ended = tokio::time::timeout(GONE, process.ended_unreaped()).await;
            ended.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
        }
    }
    Ok(())
}

/// The processes that are parts of a VM in this folder.
pub(crate) fn parts_of(folder: &Path) -> Vec<ProcessIdentity> {
    let prefix = format!("{PART}={}/", folder.display());
    let is_part = |environment: &[String]| environment.iter().any(|e| e.starts_with(&prefix));
    let all = all_processes().filter(|(_, environment)| is_part(environment));
    all.map(|(identity, _)| identity).filter(|found| found.pid != std::process::id()).collect()
}

/// Takes a sandbox away that has no monitor: all that is left of it, its state and its log.
///
/// # Errors
/// Somebody owns it; something could not be taken away: it can be tried again.
pub(crate) async fn remove(root: &Root, name: &str) -> Result<(), Error> {
    let room = |source| Error::Room { name: name.to_owned(), source };
    let owned = RunDir::adopt(root.run(), name).map_err(room)?;
    let run_dir = owned.ok_or_else(|| Error::Runs { name: name.to_owned() })?;
    if let Some(ledger) = Ledger::open(root, name)? {
        // Whoever finds it half-way goes on with it.
        let removing = |record: &mut SandboxRecord| {
            record.stage = record.stage.after(Event::Remove).unwrap_or(record.stage);
        };
        if let Err(error) = ledger.update(removing).await {
            tracing::warn!(%error, "cannot write down that it is removed");
        }
        bury(root, &ledger.record()).await?;
    }
    run_dir.remove().map_err(room)?;
    forget(root, name)
}

/// Forgets a sandbox of which nothing is left on the host: its state and its log.
///
/// # Errors
/// They cannot be removed.
pub(crate) fn forget(root: &Root, name: &str) -> Result<(), Error> {
    match std::fs::remove_dir_all(root.logs(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::Log { name: name.to_owned(), source: error });
        }
        Ok(()) | Err(_) => {}
    }
    ledger::forget(root, name)?;
    events::Event::removed(name).append(root);
    Ok(())
}

/// What became of a sandbox that was taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It needed nothing.
    Well,
    /// It runs, and has a monitor again.
    Adopted,
    /// Its command had ended, or was lost with its VM.
    Exited,
    /// It was being made or removed, and is gone.
    Removed,
}

/// Takes up sandboxes, all of them if none is named: a monitor is started for each that needs one, and
/// waited for until it has done what there is to do.
///
/// # Errors
/// The sandboxes cannot be listed.
pub async fn all(
    root: &Root,
    names: &[String],
) -> Result<Vec<(String, Result<Outcome, ClientError>)>, ClientError> {
    crate::sandbox::sweep_all(root).await;
    let names = match names {
        [] => client::names(root)?,
        given => {
            let found = given.iter().map(|name| Client::find(root, name));
            found.map(|f| f.map(|client| client.name().to_owned())).collect::<Result<_, _>>()?
        }
    };
    let mut outcomes = Vec::new();
    for name in names {
        outcomes.push((name.clone(), one(root, &name).await));
    }
    Ok(outcomes)
}

async fn one(root: &Root, name: &str) -> Result<Outcome, ClientError> {
    let client = Client::find(root, name)?;
    let before = client.record()?;
    let has_monitor = crate::run_dir::is_alive(root.run(), name);
    let due = crate::monitor::is_restart_due(&before);
    if before.is_at_rest() && !due {
        return Ok(if before.stage == Stage::Exited { Outcome::Exited } else { Outcome::Well });
    }
    if has_monitor && before.stage.is_up() {
        return Ok(Outcome::Well);
    }
    if due {
        crate::monitor::wake(root, &before).map_err(|error| client.cannot_talk(error))?;
    }
    // Whoever asks it brings a monitor up, or waits for one that is about its work.
    match client.show().await {
        Ok(view) if view.state.is_up() => Ok(Outcome::Adopted),
        Ok(_) => Ok(Outcome::Exited),
        Err(ClientError::Unknown { .. }) => Ok(Outcome::Removed),
        Err(error) => Err(error),
    }
}
