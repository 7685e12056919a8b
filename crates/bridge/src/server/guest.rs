//! The guest behind every connection: what it holds, and what is done to containers.
//!
//! Operations run to their end, whatever becomes of the connection that asked for
//! them: a container half-made because a host was restarted would help nobody.
//! Only waiting ends with its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::service::{Dial, GuestService, ServiceError, Stop};
use super::table::{Exit, LinkFacts, Phase, Table};
use super::{ServeError, Served};
use crate::frame::{Frame, MessageType};
use crate::message::incoming::Change;
use crate::message::{
    AckExit, ContainerConfig, ContainerId, ContainerNotification, ContainerState, Notification,
    NotificationType, ProcessState, Properties, PropertiesQuery, State, StreamOffset,
};
use crate::stdio::{DEFAULT_RING, OutputRing, SharedRing, WhenFull};
use crate::wire::Side;

/// What a guest is told about itself.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Names this boot of the guest (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Size of the ring of each output stream, in bytes.
    pub ring: usize,
    /// What a full ring does.
    pub when_full: WhenFull,
    /// Where the bytes of processes are moved, if not where the bridge is served.
    pub streams: Option<Handle>,
}

impl GuestOptions {
    /// The defaults: 1 MiB rings that block their writer.
    pub fn new(boot_id: impl Into<String>) -> Self {
        Self {
            boot_id: boot_id.into(),
            ring: DEFAULT_RING,
            when_full: WhenFull::Block,
            streams: None,
        }
    }
}

/// The guest's end of all sessions. Cheap to clone; one per VM.
#[derive(Clone)]
pub struct Guest {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("table", &self.shared.table()).finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) service: Arc<dyn GuestService>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) options: GuestOptions,
    table: Mutex<Table>,
    links: Mutex<Links>,
    pub(super) tasks: TaskTracker,
    pub(super) closed: CancellationToken,
}

#[derive(Default)]
struct Links {
    /// Highest session number seen; 0 before the first.
    session: u64,
    count: u64,
    current: Option<Link>,
}

/// A negotiated connection.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) facts: LinkFacts,
    /// Session number; 0 for a plain host.
    pub(super) session: u64,
    pub(super) outgoing: mpsc::Sender<Frame>,
    /// Cancelled when a newer link takes over.
    pub(super) superseded: CancellationToken,
}

impl Guest {
    /// A guest that holds nothing yet.
    pub fn new(service: Arc<dyn GuestService>, dial: Arc<dyn Dial>, options: GuestOptions) -> Self {
        let shared = Shared {
            service,
            dial,
            options,
            table: Mutex::default(),
            links: Mutex::default(),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves one bridge connection until it ends, another takes over, or the host
    /// powers the VM off. To be called for every connection; several at once are
    /// allowed, and the one that negotiated last is served.
    ///
    /// # Errors
    /// When the connection breaks or carries what is not a frame. All that the
    /// guest holds stays as it is.
    pub async fn serve<S>(&self, stream: S) -> Result<Served, ServeError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
    {
        connection::serve(&self.shared, stream).await
    }

    /// Ends every task of this guest and waits for them. Operations that run are
    /// finished first.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // No change of the table panics half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection the current one. A session must be newer than every
    /// session before; a plain host has no number and always is.
    ///
    /// # Errors
    /// The current session's number, when the offered one is not higher.
    pub(super) fn admit(
        &self,
        session: Option<u64>,
        outgoing: mpsc::Sender<Frame>,
    ) -> Result<Link, u64> {
        let mut links = self.links();
        match session {
            Some(number) if number <= links.session => return Err(links.session),
            Some(number) => links.session = number,
            None => {}
        }
        links.count += 1;
        let link = Link {
            facts: LinkFacts { number: links.count, extended: session.is_some() },
            session: session.unwrap_or_default(),
            outgoing,
            superseded: self.closed.child_token(),
        };
        if let Some(older) = links.current.replace(link.clone()) {
            older.superseded.cancel();
        }
        Ok(link)
    }

    /// Forgets a link that ended, unless a newer one is there already.
    pub(super) fn release(&self, number: u64) {
        let mut links = self.links();
        if links.current.as_ref().is_some_and(|link| link.facts.number == number) {
            links.current = None;
        }
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        id: &ContainerId,
        config: ContainerConfig,
    ) -> Result<(), ServiceError> {
        if id.is_vm() || id.as_str().is_empty() {
            return Err(ServiceError::invalid("a container needs an id of its own"));
        }
        let name = id.as_str();
        let serial = self.table().reserve(name)?;
        match self.service.create_container(name, config).await {
            Ok(created) => {
                let (tell, exit) = watch::channel(None);
                self.table().live(name, exit);
                self.watch_container(name.to_owned(), serial, created.exit, tell);
                Ok(())
            }
            Err(fault) => {
                self.table().forget(name);
                Err(fault)
            }
        }
    }

    /// Moves bytes until the guest closes.
    pub(super) fn move_bytes(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.options.streams {
            Some(runtime) => self.tasks.spawn_on(task, runtime),
            None => self.tasks.spawn(task),
        };
    }

    fn watch_container(
        self: &Arc<Self>,
        id: String,
        serial: u64,
        exit: BoxFuture<'static, u32>,
        tell: watch::Sender<Option<u32>>,
    ) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let code = tokio::select! {
                code = exit => code,
                () = shared.closed.cancelled() => return,
            };
            // The code first: who sees the container as exited must find it.
            tell.send_replace(Some(code));
            shared.table().container_exited(&id, serial);
            shared.notify_exit(&id).await;
        });
    }

    /// Tells the current link of a container's exit, if that is due.
    pub(super) async fn notify_exit(&self, id: &str) {
        let Some(link) = self.links().current.clone() else { return };
        let Some(exit) = self.table().due_notification(id, link.facts) else { return };
        let notification = Notification {
            container_id: ContainerId::from(id),
            body: ContainerNotification::exit(exit.into()),
            ..Notification::default()
        };
        match notification.encode(Side::Guest) {
            Ok(body) => {
                let message_type = MessageType::CONTAINER_NOTIFICATION;
                // A link that is gone by now needs no answer: the next one lists the exit.
                let _ = link.outgoing.send(Frame { message_type, id: 0, body }).await;
            }
            Err(fault) => tracing::error!(%fault, container = id, "exit notification"),
        }
    }

    pub(super) async fn shutdown(&self, id: &ContainerId, stop: Stop) -> Result<(), ServiceError> {
        self.table().stopping(id.as_str(), stop)?;
        self.service.shutdown_container(id.as_str(), stop).await
    }

    pub(super) async fn delete(&self, id: &ContainerId) -> Result<(), ServiceError> {
        self.table().container(id.as_str())?;
        self.service.delete_container(id.as_str()).await?;
        self.table().forget(id.as_str());
        Ok(())
    }

    pub(super) async fn properties(
        &self,
        id: &ContainerId,
        query: PropertiesQuery,
    ) -> Result<Properties, ServiceError> {
        self.table().container(id.as_str())?;
        self.service.properties(id.as_str(), query).await
    }

    pub(super) async fn modify(
        &self,
        id: &ContainerId,
        change: Change,
    ) -> Result<(), ServiceError> {
        if id.is_vm() {
            return self.service.modify(change).await;
        }
        self.table().container(id.as_str())?;
        self.service.modify_container(id.as_str(), change).await
    }

    pub(super) fn list_state(&self) -> State {
        let table = self.table();
        let containers = table.containers().filter_map(|(id, container)| {
            let exit_type = match &container.phase {
                Phase::Creating => return None,
                Phase::Exited(exit) if !container.is_acknowledged() => exit.name().to_owned(),
                Phase::Live(_) | Phase::Exited(_) => String::new(),
            };
            let init_process_id = container.init.unwrap_or_default();
            Some(ContainerState { container_id: id.into(), init_process_id, exit_type })
        });
        let containers = containers.collect();
        let processes = table.processes().filter(|(_, process)| !process.is_settled());
        let processes = processes.map(|(id, process)| ProcessState {
            container_id: match &process.target.container {
                Some(name) => name.as_str().into(),
                None => ContainerId::vm(),
            },
            process_id: id,
            exit_code: *process.exit.borrow(),
            std_in: process.streams.stdin.as_deref().map(|input| {
                let taken = input.taken();
                StreamOffset { first: taken, end: taken, closed: input.is_closed() }
            }),
            std_out: process.streams.stdout.as_ref().map(ring_offset),
            std_err: process.streams.stderr.as_ref().map(ring_offset),
        });
        State { containers, processes: processes.collect() }
    }

    pub(super) fn acknowledge(&self, id: &ContainerId, request: AckExit) {
        match request.process_id {
            Some(process) => self.table().acknowledge_process(process, request.discard),
            None => self.table().acknowledge_container(id.as_str()),
        }
    }
}

fn ring_offset(ring: &SharedRing) -> StreamOffset {
    ring.inspect(|ring: &OutputRing| StreamOffset {
        first: ring.base(),
        end: ring.end(),
        closed: ring.is_finished() || ring.is_stopped(),
    })
}

impl Exit {
    fn name(self) -> &'static str {
        match self {
            Self::Graceful => "GracefulExit",
            Self::Forced => "ForcedExit",
            Self::Unexpected => "UnexpectedExit",
        }
    }
}

impl From<Exit> for NotificationType {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Graceful => Self::GRACEFUL_EXIT,
            Exit::Forced => Self::FORCED_EXIT,
            Exit::Unexpected => Self::UNEXPECTED_EXIT,
        }
    }
}
