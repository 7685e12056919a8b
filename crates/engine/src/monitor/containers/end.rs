//! A further container from when it runs until nothing of it is left.

use std::sync::Arc;
use std::time::Duration;

use super::super::execs::{self, MEMORY};
use super::super::{DRAIN, Monitor, spilled};
use super::start::Begun;
use super::{Further, Init, Slot};
use crate::error::Error;
use crate::further::KILLED;
use crate::record::SandboxRecord;

/// How long to wait until the disk is tried again for what must be written down.
const RETRY: Duration = Duration::from_millis(500);

/// How long the other commands of a container may take to end that has ended: they are killed with it.
const LAST: Duration = Duration::from_secs(5);

/// Enters a container that runs, and looks after it on a task that ends with it or with the monitor.
pub(super) fn attend(monitor: &Arc<Monitor>, begun: Begun) {
    let further = begun.further.clone();
    monitor.containers.table().insert(further.id().to_owned(), Slot::There(further));
    let monitor = monitor.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = see_to_its_end(&monitor, begun) => {}
            () = monitor.ending.cancelled() => {}
            () = monitor.over.cancelled() => {}
        }
    });
}

async fn see_to_its_end(monitor: &Arc<Monitor>, begun: Begun) {
    let Begun { further, mut recording, image } = begun;
    let Some(code) = until_end(monitor, &further).await else { return };
    if let Some(recording) = &mut recording {
        recording.finish(DRAIN).await;
    }
    monitor.execs.settle(further.id(), LAST).await;
    write_down_end(monitor, &further, code).await;
    if let Some(recording) = recording {
        recording.settle(DRAIN).await;
    }
    further.exit.send_replace(Some(code));
    if let Init::Streamed(exec) = &further.init {
        // Whoever reads its streams says so when that is done.
        tokio::select! {
            () = further.remove.cancelled() => {}
            () = tokio::time::sleep(MEMORY) => {}
        }
        monitor.execs.forget(exec.id());
    }
    finish(monitor, &further).await;
    drop(image);
}

/// How its command ended; nothing if it is not for us to say, because the way to it was lost.
async fn until_end(monitor: &Monitor, further: &Further) -> Option<u32> {
    let unclaimed = async {
        match &further.init {
            Init::Streamed(exec) => execs::unclaimed(monitor, exec).await,
            Init::Logged(..) => std::future::pending().await,
        }
    };
    tokio::select! {
        exit = further.process().wait() => return exit.ok(),
        () = unclaimed => {}
        () = further.remove.cancelled() => {}
    }
    if let Err(error) = further.process().kill().await {
        tracing::warn!(container = further.id(), %error, "cannot kill a container's command");
    }
    match tokio::time::timeout(LAST, further.process().wait()).await {
        Ok(exit) => exit.ok(),
        // It goes with what else there is of it.
        Err(_) => Some(KILLED),
    }
}

/// Writes down how it ended, before anything is taken away that knows it. A full disk is waited for.
async fn write_down_end(monitor: &Monitor, further: &Further, code: u32) {
    loop {
        let name = further.id().to_owned();
        let ended = move |record: &mut SandboxRecord| {
            if let Some(container) = record.containers.get_mut(&name) {
                container.end(code, None);
            }
        };
        let Err(error) = monitor.ledger.update(ended).await else { return };
        tracing::error!(
            container = further.id(),
            code,
            error = &error as &dyn std::error::Error,
            "cannot write down an end"
        );
        tokio::time::sleep(RETRY).await;
    }
}

/// Takes it out of the VM, and forgets it if that is wanted.
async fn finish(monitor: &Monitor, further: &Further) {
    let name = further.id();
    let cleared = monitor.sandbox.clear(name).await;
    monitor.containers.table().remove(name);
    match cleared {
        Ok(()) => monitor.cleared(name, further.remove.is_cancelled()).await,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(container = name, error, "cannot take a container out; it stays");
        }
    }
    further.gone.cancel();
}

impl Monitor {
    /// Nothing of a container is in the VM any more.
    pub(super) async fn cleared(&self, name: &str, is_unwanted: bool) {
        let known = |record: &SandboxRecord| record.containers.get(name).map(|it| it.order.remove);
        if is_unwanted || self.ledger.look(known).unwrap_or(true) {
            if let Err(error) = self.forget_container(name).await {
                tracing::warn!(container = name, %error, "cannot forget it");
            }
            return;
        }
        let of = name.to_owned();
        let cleared = move |record: &mut SandboxRecord| {
            if let Some(container) = record.containers.get_mut(&of) {
                container.is_cleared = true;
            }
        };
        if let Err(error) = self.ledger.update(cleared).await {
            tracing::warn!(container = name, %error, "cannot write down that it is out of the VM");
        }
    }

    /// Forgets a container and what it wrote.
    pub(super) async fn forget_container(&self, name: &str) -> Result<(), Error> {
        let known = self.ledger.look(|record| record.containers.get(name).cloned());
        let of = name.to_owned();
        let gone = move |record: &mut SandboxRecord| drop(record.containers.remove(&of));
        if let Err(error) = self.ledger.update(gone).await {
            // It is still there for whoever reads the disk, so it is for everybody.
            let of = name.to_owned();
            self.ledger.amend(|record| record.containers.extend(known.map(|it| (of, it))));
            return Err(error);
        }
        let sandbox = self.sandbox.name();
        let folders = [
            self.root.container_logs(sandbox, name),
            // What its log had no room for is not the next one's of this name.
            spilled(&self.root, sandbox, name),
        ];
        for folder in folders {
            match std::fs::remove_dir_all(&folder) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Log { name: name.to_owned(), source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Removes a container: its command is killed, if it runs.
    pub(in crate::monitor) async fn remove_container(&self, name: &str) -> Result<(), Error> {
        if let Some(further) = self.containers.get(name) {
            self.live()?;
            further.remove.cancel();
            tokio::select! {
                () = further.gone.cancelled() => {}
                () = self.over.cancelled() => {}
            }
            // One that could not be taken out is still there.
            return match self.ledger.look(|record| record.containers.contains_key(name)) {
                false => Ok(()),
                true => Err(Error::ContainerBusy { name: name.to_owned() }),
            };
        }
        let record = self.further(name)?;
        if record.exit_code.is_none() {
            return Err(Error::ContainerBusy { name: name.to_owned() });
        }
        if !record.is_cleared {
            self.live()?.clear(name).await?;
        }
        self.forget_container(name).await
    }
}
