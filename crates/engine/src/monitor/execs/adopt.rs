//! The commands a former monitor started.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_uvm::container::StdioResume;

use super::super::Monitor;
use super::{Exec, FILE, Saved, attend, resume};
use crate::process::Process;
use crate::root::Root;

/// What was written down of commands, by their process in the guest.
#[derive(Debug)]
pub(in crate::monitor) struct Known(BTreeMap<u32, Saved>);

impl Known {
    /// Reads it, and makes it the table's file.
    pub(in crate::monitor) fn read(monitor: &Monitor, root: &Root) -> Self {
        let path = root.run().join(monitor.sandbox.name()).join(FILE);
        let saved = std::fs::read(&path).unwrap_or_default();
        let saved: Vec<Saved> = serde_json::from_slice(&saved).unwrap_or_default();
        *monitor.execs.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
        let counter = saved.iter().map(|exec| exec.id).max().unwrap_or(0);
        monitor.execs.counter.store(counter, Ordering::Relaxed);
        Self(saved.into_iter().map(|exec| (exec.pid, exec)).collect())
    }

    /// Enters a command that goes on, if its caller was told of it.
    pub(in crate::monitor) fn enter(
        &self,
        monitor: &Monitor,
        process: Box<Process>,
    ) -> Result<Arc<Exec>, Box<Process>> {
        let Some(saved) = self.0.get(&process.pid()).cloned() else { return Err(process) };
        let (streams, claimed) = (Mutex::default(), AtomicBool::new(false));
        Ok(monitor.execs.insert(Exec { saved, process: *process, streams, claimed }))
    }
}

/// Goes on with further commands, and ends those nobody was told of. Those that containers began with
/// are theirs to look after.
pub(in crate::monitor) async fn adopt(monitor: &Arc<Monitor>, known: &Known) {
    let state = match monitor.sandbox.vm().guest_state().await {
        Ok(state) => state,
        Err(error) => return tracing::warn!(%error, "cannot list what the guest runs"),
    };
    for running in state.processes {
        let (id, pid) = (running.container_id.as_str(), running.process_id);
        let container = match monitor.begins_with(id) {
            Some(init) if init != pid => Some(id).filter(|id| *id != monitor.sandbox.name()),
            Some(_) | None => continue,
        };
        let process = match resume(monitor, container, pid, StdioResume::default()).await {
            Ok(process) => Box::new(process),
            Err(error) => {
                tracing::warn!(pid, %error, "cannot go on with a command");
                continue;
            }
        };
        match known.enter(monitor, process) {
            Ok(exec) => attend(monitor, exec),
            Err(process) => {
                tracing::info!(pid, "nobody was told of this command; it ends");
                tokio::spawn(async move {
                    if process.kill().await.is_ok() && process.wait().await.is_ok() {
                        process.forget().await;
                    }
                });
            }
        }
    }
    monitor.execs.write_down();
}
