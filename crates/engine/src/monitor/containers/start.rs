//! A further container is started.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::api::{ContainerOrder, Started, StartedContainer};
use super::super::input::InputDesk;
use super::super::output::Recording;
use super::super::{Monitor, execs, open_log};
use super::{Further, Init, Slot};
use crate::error::Error;
use crate::further::FurtherRecord;
use crate::image::{self, RootImage};
use crate::logs::Stream;
use crate::progress::OnProgress;
use crate::record::{ContainerRecord, SandboxRecord};
use crate::sandbox::container::bundle;

/// What begins when a container runs.
pub(super) struct Begun {
    pub(super) further: Arc<Further>,
    pub(super) recording: Option<Recording>,
    /// Keeps the image from the store's sweeping.
    pub(super) image: Option<RootImage>,
}

/// Starts a container, on a task of its own: a caller that hangs up must not leave half of it.
pub(in crate::monitor) async fn start(
    monitor: &Arc<Monitor>,
    order: ContainerOrder,
) -> Result<StartedContainer, Error> {
    let sandbox = monitor.live()?.name().to_owned();
    order.check(&sandbox)?;
    {
        let mut table = monitor.containers.table();
        let known = monitor.ledger.look(|record| record.containers.contains_key(&order.name));
        if known || table.contains_key(&order.name) {
            return Err(order.taken(&sandbox));
        }
        table.insert(order.name.clone(), Slot::Coming);
    }
    let monitor = monitor.clone();
    let started = tokio::spawn(async move { start_reserved(&monitor, order).await });
    started.await.unwrap_or(Err(Error::Interrupted))
}

async fn start_reserved(
    monitor: &Arc<Monitor>,
    order: ContainerOrder,
) -> Result<StartedContainer, Error> {
    let name = order.name.clone();
    let begun = match bring_up(monitor, order).await {
        Ok(begun) => begun,
        Err(error) => {
            undo(monitor, &name).await;
            monitor.containers.table().remove(&name);
            return Err(error);
        }
    };
    // Before its end can be seen: it may be forgotten with that.
    let exec = begun.further.started();
    let record = monitor.further(&name)?;
    super::end::attend(monitor, begun);
    Ok(StartedContainer { container: record.view(), nonce: record.order.nonce, exec })
}

impl Further {
    /// What opens its streams, if they are its caller's.
    fn started(&self) -> Option<Started> {
        match &self.init {
            Init::Streamed(exec) => Some(exec.started()),
            Init::Logged(..) => None,
        }
    }
}

impl Monitor {
    /// What was told of a container when it had been started.
    pub(in crate::monitor) fn started(&self, name: &str) -> Result<StartedContainer, Error> {
        let record = self.further(name)?;
        let exec = self.containers.get(name).and_then(|further| further.started());
        Ok(StartedContainer { container: record.view(), nonce: record.order.nonce, exec })
    }
}

async fn bring_up(monitor: &Arc<Monitor>, order: ContainerOrder) -> Result<Begun, Error> {
    let name = order.name.clone();
    let (of, record) = (name.clone(), FurtherRecord::creating(order.clone()));
    let coming = |sandbox: &mut SandboxRecord| drop(sandbox.containers.insert(of, record));
    monitor.ledger.update(coming).await?;
    let quiet: OnProgress = Box::new(|_| {});
    let never = CancellationToken::new();
    let image = image::prepare(&monitor.root, &order.rootfs, &never, quiet).await?;
    let resolved = order.command.resolve(&image.config)?;
    let sandbox = monitor.live()?;
    let started =
        sandbox.start_further(&name, &image, order.read_only, &order.command, &resolved).await;
    let (container, mut process) = started?;
    let mut there = ContainerRecord {
        id: name.clone(),
        bundle: bundle(&name),
        pid: Some(process.pid()),
        command: resolved,
        terminal: order.command.terminal.is_some(),
        log_base: [0, 0],
    };
    let (init, recording) = if order.detached {
        let of = Some(name.as_str());
        let log = open_log(&monitor.root, sandbox.name(), of, order.log, order.when_full)?;
        // One of the same name may have left something.
        there.log_base = [log.end(Stream::Stdout), log.end(Stream::Stderr)];
        let desk = InputDesk::of(process.take_stdin());
        let outputs = [process.take_stdout(), process.take_stderr()];
        let recording = Recording::begin(log, there.log_base, order.when_full, outputs);
        (Init::Logged(Box::new(process), desk), Some(recording))
    } else {
        let exec = execs::enter(monitor, Some(&name), process, &order.command);
        (Init::Streamed(exec), None)
    };
    let (of, runs) = (name.clone(), there.clone());
    let running = move |record: &mut SandboxRecord| {
        if let Some(container) = record.containers.get_mut(&of) {
            container.there = Some(runs);
        }
    };
    if let Err(error) = monitor.ledger.update(running).await {
        if let Init::Streamed(exec) = &init {
            monitor.execs.forget(exec.id());
        }
        return Err(error);
    }
    let further = Arc::new(Further {
        there,
        container,
        init,
        exit: watch::Sender::new(None),
        remove: CancellationToken::new(),
        gone: CancellationToken::new(),
    });
    Ok(Begun { further, recording, image: Some(image) })
}

/// Takes away one that nobody was told of.
pub(super) async fn undo(monitor: &Monitor, name: &str) {
    if let Err(error) = monitor.sandbox.clear(name).await {
        let error = &error as &dyn std::error::Error;
        tracing::error!(container = name, error, "cannot undo a container");
    }
    if let Err(error) = monitor.forget_container(name).await {
        tracing::warn!(container = name, %error, "cannot write down that it is gone");
    }
}
