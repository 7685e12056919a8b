//! The further containers that a former monitor looked after.

use std::sync::Arc;

use coracle_uvm::container::{StdinResume, StdioResume};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::execs::Known;
use super::super::input::InputDesk;
use super::super::output::Recording;
use super::super::{Monitor, UNKNOWN, open_log};
use super::start::{Begun, undo};
use super::{Further, Init};
use crate::error::Error;
use crate::further::{ContainerStage, FurtherRecord};
use crate::record::{ContainerRecord, SandboxRecord};
use crate::sandbox::adopt::output_from;

/// Goes on with them. One that the guest does not hold any more has ended, nobody knows how.
pub(in crate::monitor) async fn adopt(monitor: &Arc<Monitor>, known: &Known) {
    let records = monitor.ledger.look(|record| record.containers.clone());
    for (name, record) in records {
        match (record.stage(), &record.there) {
            (ContainerStage::Running, Some(there)) => {
                match go_on(monitor, known, &record, there).await {
                    Ok(begun) => super::end::attend(monitor, begun),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(container = name, error, "cannot go on with a container");
                        lost(monitor, &name).await;
                    }
                }
            }
            (ContainerStage::Exited, _) if record.is_cleared => {}
            (ContainerStage::Exited, Some(there)) if !record.order.detached => {
                // The guest has the last of its streams, which its caller may not have read yet.
                match go_on(monitor, known, &record, there).await {
                    Ok(begun) => super::end::attend(monitor, begun),
                    Err(_) => out(monitor, &name).await,
                }
            }
            (ContainerStage::Exited, _) => out(monitor, &name).await,
            (ContainerStage::Creating | ContainerStage::Running, _) => undo(monitor, &name).await,
        }
    }
}

async fn go_on(
    monitor: &Arc<Monitor>,
    known: &Known,
    record: &FurtherRecord,
    there: &ContainerRecord,
) -> Result<Begun, Error> {
    let (sandbox, order) = (&monitor.sandbox, &record.order);
    let pid = there.pid.unwrap_or_default();
    let (container, init, recording) = if order.detached {
        let of = Some(there.id.as_str());
        let log = open_log(&monitor.root, sandbox.name(), of, order.log, order.when_full)?;
        let mut stdio = output_from(there, &log);
        if order.command.stdin {
            stdio.stdin = StdinResume::Fresh;
        }
        let (container, mut process) = sandbox.resume_further(&there.id, pid, stdio).await?;
        let desk = InputDesk::of(process.take_stdin());
        let outputs = [process.take_stdout(), process.take_stderr()];
        let recording = Recording::begin(log, there.log_base, order.when_full, outputs);
        (container, Init::Logged(Box::new(process), desk), Some(recording))
    } else {
        let resumed = sandbox.resume_further(&there.id, pid, StdioResume::default()).await;
        let (container, process) = resumed?;
        match known.enter(monitor, Box::new(process)) {
            Ok(exec) => (container, Init::Streamed(exec), None),
            Err(_) => return Err(Error::ContainerExited { name: there.id.clone() }),
        }
    };
    let further = Arc::new(Further {
        there: there.clone(),
        container,
        init,
        exit: watch::Sender::new(None),
        remove: CancellationToken::new(),
        gone: CancellationToken::new(),
    });
    Ok(Begun { further, recording, image: None })
}

/// Writes down that a container is lost, and takes away what is left of it.
async fn lost(monitor: &Monitor, name: &str) {
    let of = name.to_owned();
    let ended = move |record: &mut SandboxRecord| {
        if let Some(container) = record.containers.get_mut(&of) {
            container.end(UNKNOWN, Some("it was lost with its monitor"));
        }
    };
    if let Err(error) = monitor.ledger.update(ended).await {
        tracing::warn!(container = name, %error, "cannot write down that it is lost");
    }
    out(monitor, name).await;
}

/// Takes one out of the VM that has ended.
async fn out(monitor: &Monitor, name: &str) {
    match monitor.sandbox.clear(name).await {
        Ok(()) => monitor.cleared(name, false).await,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(container = name, error, "cannot take a container out; it stays");
        }
    }
}
