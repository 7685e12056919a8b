//! The watcher: one task a VM, from create until it is closed.
//!
//! It alone waits for the monitor, so that everybody else waits for one recorded end. When the VM
//! ends by itself it takes the guest connection down at once: whoever waits for a process in a
//! dead VM must learn that now, not at close.

use std::sync::Arc;

use super::{Machine, locked};

pub(super) async fn watch(machine: Arc<Machine>) {
    let exited = async {
        let reason = machine.vm.wait().await;
        tracing::debug!(vm = machine.id, %reason, "the VM has ended");
        machine.life.exited(reason);
        machine.after_exit();
        std::future::pending::<()>().await;
    };
    let start_abandoned = async {
        machine.start_abandoned.notified().await;
        machine.end_vm(machine.host.cleanup_timeout).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = exited => {}
        () = start_abandoned => {}
        () = machine.life.until_closed() => {}
        () = machine.abandoned.notified() => machine.after_abandonment().await,
    }
}

impl Machine {
    /// The VM ended: nobody will dial any more, and nobody answers.
    fn after_exit(&self) {
        self.release_guest();
        let never_started = locked(&self.listeners).entropy.take().is_some();
        if never_started {
            *locked(&self.listeners) = super::Listeners::default();
            self.no_output_will_come();
        }
    }

    /// Nobody holds the VM any more.
    async fn after_abandonment(self: &Arc<Self>) {
        if !self.host.die_with_owner {
            tracing::debug!(vm = self.id, "the last handle is gone; the VM may outlive it");
            // Its control socket takes one at a time, and its guest has one host.
            self.release_guest();
            *locked(&self.listeners) = super::Listeners::default();
            locked(&self.output).take().inspect(tokio::task::JoinHandle::abort);
            locked(&self.while_held).drain(..).for_each(|task| task.abort());
            return;
        }
        if let Err(error) = self.close().await {
            tracing::error!(vm = self.id, %error, "cannot close a VM nobody holds any more");
        }
    }
}
