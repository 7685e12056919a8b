//! The guest behind every connection: what it holds, and what each request does.
//!
//! Operations run to their end, whatever becomes of the connection that asked for
//! them: a container half-made because a host was restarted would help nobody.
//! Only waiting ends with its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::service::{Connection, Dial, GuestService, ServiceError, Stop, Target};
use super::streams;
use super::table::{Exit, LinkFacts, Phase, Streams, Table};
use super::{ServeError, Served};
use crate::frame::{Frame, MessageType};
use crate::hresult::Hresult;
use crate::message::incoming::{Change, Execution};
use crate::message::{
    AckExit, AttachStdio, Attached, ContainerConfig, ContainerId, ContainerNotification,
    ContainerState, Notification, NotificationType, ProcessState, Properties, PropertiesQuery,
    ResizeConsole, SignalProcess, State, StreamOffset, VsockStdioRelay, WAIT_FOREVER,
    WaitForProcess,
};
use crate::stdio::{self, DEFAULT_RING, Input, OutputRing, SharedRing, StdStream, WhenFull};
use crate::wire::Side;

/// SIGKILL: what a signal request without a signal means.
const SIGKILL: i32 = 9;

/// Highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

/// What a guest is told about itself.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Names this boot of the guest (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Size of the ring of each output stream, in bytes.
    pub ring: usize,
    /// What a full ring does.
    pub when_full: WhenFull,
}

impl GuestOptions {
    /// The defaults: 1 MiB rings that block their writer.
    pub fn new(boot_id: impl Into<String>) -> Self {
        Self { boot_id: boot_id.into(), ring: DEFAULT_RING, when_full: WhenFull::Block }
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
    dial: Arc<dyn Dial>,
    pub(super) options: GuestOptions,
    table: Mutex<Table>,
    links: Mutex<Links>,
    pub(super) tasks: TaskTracker,
    closed: CancellationToken,
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

    fn watch_process(
        self: &Arc<Self>,
        id: u32,
        exit: BoxFuture<'static, u32>,
        tell: watch::Sender<Option<u32>>,
    ) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let code = tokio::select! {
                code = exit => code,
                () = shared.closed.cancelled() => return,
            };
            tell.send_replace(Some(code));
            shared.table().process_exited(id);
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

    /// Starts a process: in the VM, as a container's init, or beside it.
    pub(super) async fn execute(
        self: &Arc<Self>,
        id: &ContainerId,
        request: Execution,
        link: &Link,
    ) -> Result<u32, ServiceError> {
        let Execution { mut parameters, ports } = request;
        if !link.facts.extended {
            // A plain host names a port for each stream it wants, and cannot ask later.
            parameters.create_std_in_pipe = ports.std_in != 0;
            parameters.create_std_out_pipe = ports.std_out != 0;
            parameters.create_std_err_pipe = ports.std_err != 0;
        }
        let in_vm = id.is_vm() || parameters.create_in_utility_vm;
        let init = !in_vm && parameters.oci_process.is_none();
        let container = (!in_vm).then(|| id.as_str().to_owned());
        let container_exit = match &container {
            Some(name) => Some(self.startable(name, init)?),
            None => None,
        };
        let connections = self.dial_stdio(&ports, link).await?;
        let started = match &container {
            None => self.service.exec_in_vm(parameters).await?,
            Some(name) if init => self.service.start_init(name, parameters).await?,
            Some(name) => self.service.exec(name, parameters).await?,
        };
        let streams = self.adopt(started.stdin, started.stdout, started.stderr);
        let target = Target { container, pid: started.pid };
        let (tell, own_exit) = watch::channel(None);
        let exit = container_exit.filter(|_| init);
        let owns_exit = exit.is_none();
        let process = self.table().enter(target, init, exit.unwrap_or(own_exit), streams.clone());
        if owns_exit {
            self.watch_process(process, started.exit, tell);
        }
        for (stream, connection) in connections {
            self.attach(process, &streams, stream, connection, 0, link);
        }
        Ok(process)
    }

    /// The exit of a container in which a process may be started.
    fn startable(&self, id: &str, init: bool) -> Result<watch::Receiver<Option<u32>>, Hresult> {
        let table = self.table();
        let container = table.container(id)?;
        match &container.phase {
            Phase::Live(exit) if !init || container.init.is_none() => Ok(exit.clone()),
            Phase::Live(_) => Err(Hresult::INVALID_STATE),
            Phase::Exited(_) => Err(Hresult::ALREADY_STOPPED),
            Phase::Creating => Err(Hresult::NO_SUCH_SYSTEM),
        }
    }

    /// Connects to the ports, in the order stdin, stdout, stderr.
    async fn dial_stdio(
        &self,
        ports: &VsockStdioRelay,
        link: &Link,
    ) -> Result<Vec<(StdStream, Box<dyn Connection>)>, ServiceError> {
        let wanted = [
            (StdStream::In, ports.std_in),
            (StdStream::Out, ports.std_out),
            (StdStream::Err, ports.std_err),
        ];
        let mut connections = Vec::new();
        for (stream, port) in wanted.into_iter().filter(|(_, port)| *port != 0) {
            let failed = |fault: std::io::Error| {
                ServiceError::failed(format!("connecting {stream} to port {port}: {fault}"))
            };
            let mut connection = self.dial.dial(port).await.map_err(failed)?;
            if link.facts.extended {
                stdio::open(&mut connection, link.session, port).await.map_err(failed)?;
            }
            connections.push((stream, connection));
        }
        Ok(connections)
    }

    /// Takes the guest's ends of a process's pipes.
    fn adopt(
        &self,
        stdin: Option<super::Sink>,
        stdout: Option<super::Source>,
        stderr: Option<super::Source>,
    ) -> Streams {
        let fill = |source| {
            let ring = SharedRing::with_capacity(self.options.ring, self.options.when_full);
            let closed = self.closed.clone();
            self.tasks.spawn(streams::fill(source, ring.clone(), closed));
            ring
        };
        Streams {
            stdin: stdin.map(|sink| Arc::new(Input::new(sink))),
            stdout: stdout.map(fill),
            stderr: stderr.map(fill),
        }
    }

    /// Lets a connection carry a stream from now on.
    fn attach(
        self: &Arc<Self>,
        process: u32,
        streams: &Streams,
        stream: StdStream,
        connection: Box<dyn Connection>,
        from: u64,
        link: &Link,
    ) {
        let carried = match stream {
            StdStream::In => streams.stdin.clone().map(streams::Carried::Input),
            StdStream::Out | StdStream::Err => {
                streams.ring(stream).cloned().map(|ring| streams::Carried::Output(ring, from))
            }
        };
        // A stream that was asked for and does not exist is one that ended at once.
        let carried = carried.unwrap_or_else(|| streams::Carried::absent(stream));
        let shared = Arc::clone(self);
        let (extended, superseded) = (link.facts.extended, link.superseded.clone());
        let closed = self.closed.clone();
        self.tasks.spawn(async move {
            let until = if extended { superseded } else { closed };
            streams::carry(&carried, connection, extended, until).await;
            let mut table = shared.table();
            table.settle(process);
            if let (streams::Carried::Output(ring, _), false) = (&carried, table.holds(process)) {
                // Nobody can ask for the rest any more.
                if !ring.is_served() {
                    ring.stop();
                }
            }
        });
    }

    /// Waits for the end of a process; `None` when the wait's own limit was first.
    /// The caller must report the fate of the answer with [`Table::wait_ends`].
    pub(super) async fn wait(
        &self,
        id: &ContainerId,
        request: WaitForProcess,
    ) -> Result<u32, ServiceError> {
        let mut exit = {
            let mut table = self.table();
            let exit = table.process(container_name(id), request.process_id)?.exit.clone();
            table.wait_begins(request.process_id);
            exit
        };
        let code = async {
            match exit.wait_for(Option::is_some).await {
                Ok(code) => code.ok_or(Hresult::FAIL),
                // The guest is being closed.
                Err(_) => Err(Hresult::FAIL),
            }
        };
        if request.timeout_in_ms == WAIT_FOREVER {
            return Ok(code.await?);
        }
        let limit = Duration::from_millis(request.timeout_in_ms.into());
        match tokio::time::timeout(limit, code).await {
            Ok(code) => Ok(code?),
            Err(_) => Err(Hresult::TIMEOUT.into()),
        }
    }

    pub(super) async fn signal(
        &self,
        id: &ContainerId,
        request: SignalProcess,
    ) -> Result<(), ServiceError> {
        let target = self.table().running(container_name(id), request.process_id)?;
        let signal = match request.options.unwrap_or_default().signal {
            0 => SIGKILL,
            signal @ 1..=SIGNAL_MAX => signal,
            other => return Err(ServiceError::invalid(format!("signal {other} does not exist"))),
        };
        self.service.signal(&target, signal).await
    }

    pub(super) async fn resize(
        &self,
        id: &ContainerId,
        request: ResizeConsole,
    ) -> Result<(), ServiceError> {
        let target = self.table().running(container_name(id), request.process_id)?;
        self.service.resize(&target, request.width, request.height).await
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

    /// Connects the streams of a process to new ports.
    pub(super) async fn attach_stdio(
        self: &Arc<Self>,
        id: &ContainerId,
        request: AttachStdio,
        link: &Link,
    ) -> Result<Attached, ServiceError> {
        let process = request.process_id;
        let streams = self.table().process(container_name(id), process)?.streams.clone();
        let start = |ring: &Option<SharedRing>, wanted: u64| {
            let Some(ring) = ring else { return Ok(wanted) };
            let (first, end) = ring.inspect(|ring| (ring.base(), ring.end()));
            if wanted > end {
                let text = format!("offset {wanted} is beyond the end of the stream, {end}");
                return Err(ServiceError::invalid(text));
            }
            Ok(wanted.max(first))
        };
        let attached = Attached {
            std_in: streams.stdin.as_deref().map(Input::taken).unwrap_or_default(),
            std_out: start(&streams.stdout, request.std_out)?,
            std_err: start(&streams.stderr, request.std_err)?,
        };
        let ports = request.vsock_stdio_relay_settings;
        for (stream, connection) in self.dial_stdio(&ports, link).await? {
            let from = match stream {
                StdStream::In => attached.std_in,
                StdStream::Out => attached.std_out,
                StdStream::Err => attached.std_err,
            };
            self.attach(process, &streams, stream, connection, from, link);
        }
        Ok(attached)
    }
}

/// The container a request names, or `None` for the VM itself.
fn container_name(id: &ContainerId) -> Option<&str> {
    (!id.is_vm()).then_some(id.as_str())
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
