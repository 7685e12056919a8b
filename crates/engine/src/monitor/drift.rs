//! The monitor compares what it knows with what there is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Monitor;
use crate::drift::{self, Drift, Running};
use crate::error::Error;

/// What lasts no longer is on its way.
const A_MOMENT: Duration = Duration::from_millis(300);

impl Monitor {
    /// All that differs, on the host and in the guest. A paused guest is not asked.
    pub(super) async fn drift(&self) -> Result<Vec<Drift>, Error> {
        let (root, record) = (self.root.clone(), self.ledger.record());
        let host = tokio::task::spawn_blocking(move || drift::of_host(&root, &record)).await;
        // Looking does not panic; if it did, nothing was seen.
        let mut drifts = host.unwrap_or_default();
        let plugs = self.sandbox.plugs();
        drifts.extend(plugs.strays().iter().map(|stray| drift::stray(format!("{stray:?}"))));
        for plugged in plugs.list().into_iter().filter(|plugged| plugged.state != "ok") {
            let what = format!("{} {}", plugged.spec.kind, plugged.spec.source);
            drifts.push(drift::unwell(what, &plugged.state));
        }
        if !self.is_paused() {
            // What comes or goes at this moment differs for a moment only.
            let first = self.drift_of_guest().await?;
            if !first.is_empty() {
                tokio::time::sleep(A_MOMENT).await;
                let again = self.drift_of_guest().await?;
                drifts.extend(again.into_iter().filter(|drift| first.contains(drift)));
            }
        }
        Ok(drifts)
    }

    async fn drift_of_guest(&self) -> Result<Vec<Drift>, Error> {
        let failed = |source| self.sandbox.refused("ask what runs in", source);
        let state = self.sandbox.vm().guest_state().await.map_err(failed)?;
        let mut listed = Running::default();
        for container in state.containers {
            listed.containers.insert(container.container_id.as_str().to_owned());
        }
        for process in state.processes {
            let id = process.container_id.as_str();
            // Those of the VM itself are the agent's.
            if listed.containers.contains(id) {
                listed.processes.insert((id.to_owned(), process.process_id));
            }
        }
        Ok(drift::of_guest(&self.known(), &listed))
    }

    fn known(&self) -> Running {
        let own = self.sandbox.name().to_owned();
        let mut known = Running::default();
        known.containers.insert(own.clone());
        known.processes.insert((own.clone(), self.init.pid()));
        for (id, pid) in self.containers.running() {
            known.processes.insert((id.clone(), pid));
            known.containers.insert(id);
        }
        known.processes.insert((own.clone(), self.checking.load(Ordering::Relaxed)));
        for (id, pid) in self.execs.running() {
            known.processes.insert((id.unwrap_or_else(|| own.clone()), pid));
        }
        known
    }
}
