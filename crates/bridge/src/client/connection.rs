//! The host's end of one bridge connection.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

use super::answer::{Answer, ExitReply, ExitResult, Reply, succeeded};
use super::calls::{Call, Settle};
use super::driver::{Command, drive};
use super::error::BridgeError;
use super::registry::Registry;
use super::{Container, Process, StdioResume, process};
use crate::channel::ChannelDir;
use crate::frame::{GUEST_TO_HOST, GUEST_TO_HOST_NEGOTIATED};
use crate::message::incoming::{Dialect, decode_answer};
use crate::message::{
    AckExit, Capabilities, Chunk, ChunkData, ContainerConfig, ContainerId, CoracleGuest,
    CoracleHost, Create, DeleteContainerState, DumpStacks, GetProperties, GuestDefinedCapabilities,
    ListState, Modify, Negotiate, Negotiated, PROTOCOL_VERSION, ProcessParameters, Properties,
    PropertiesQuery, Request, Resource, Response, Rpc, ShutdownForced, ShutdownGraceful, Start,
    State, SystemConfig, TraceContext, Verb, WAIT_FOREVER, WaitForProcess,
};
use crate::port::STDIO_FIRST;
use crate::wire::Side;

/// How long the guest may take for an answer before the bridge is given up.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long a shutdown may take before its caller is told so.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer fetched in pieces, in bytes.
const LONG_ANSWER_MAX: u64 = 16 << 20;

/// Which session a connection is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Session {
    /// The one after the last the guest has seen. For a host that knows by other
    /// means, a lock for example, that it is the only one.
    #[default]
    Next,
    /// This one; refused when the guest has seen it or a higher one.
    Number(u64),
    /// None: speak to the guest as hcsshim does.
    Plain,
}

/// How to connect to a guest.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Where the guest dials the ports for standard streams.
    pub channel: ChannelDir,
    /// Limit of a call; when it is reached the whole bridge is given up.
    pub rpc_timeout: Duration,
    /// The session to be.
    pub session: Session,
    /// Goes out with every request but the negotiation.
    pub trace: Option<TraceContext>,
}

impl ConnectOptions {
    /// The defaults: 5 minutes, the next session, no trace.
    pub fn new(channel: ChannelDir) -> Self {
        Self { channel, rpc_timeout: RPC_TIMEOUT, session: Session::Next, trace: None }
    }
}

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Once sent it is seen through, whatever becomes of the caller.
    Steady,
    /// The caller may give up; the answer is then of no interest.
    Cancellable,
}

/// The bridge to a guest. Cheap to clone; the connection is closed when the last
/// handle, containers and processes included, is gone.
///
/// Unless said otherwise a call, once sent, is seen through even if its future is
/// dropped, and a guest that does not answer within the limit loses the bridge.
#[derive(Clone)]
pub struct GuestConnection {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: ConnectOptions,
    commands: mpsc::UnboundedSender<Command>,
    pub(super) registry: Arc<Registry>,
    next_port: AtomicU32,
    protocol: u32,
    capabilities: Capabilities,
    defined: GuestDefinedCapabilities,
    coracle: Option<CoracleGuest>,
}

impl fmt::Debug for GuestConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestConnection")
            .field("channel", &self.inner.options.channel)
            .field("session", &self.session())
            .finish_non_exhaustive()
    }
}

impl GuestConnection {
    /// Negotiates with the guest at the other end of `stream`. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`BridgeError::UnexpectedVersion`], [`BridgeError::StaleSession`], and what
    /// any call may give. Dropping the future closes the stream.
    pub async fn connect<S>(stream: S, options: ConnectOptions) -> Result<Self, BridgeError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let registry = Arc::new(Registry::default());
        let (commands, queue) = mpsc::unbounded_channel();
        // The driver ends with the last handle, or with the bridge.
        tokio::spawn(drive(stream, queue, Arc::clone(&registry)));
        let mut inner = Inner {
            options,
            commands,
            registry,
            next_port: AtomicU32::new(STDIO_FIRST),
            protocol: 0,
            capabilities: Capabilities::default(),
            defined: GuestDefinedCapabilities::default(),
            coracle: None,
        };
        let negotiated = inner.negotiate().await?;
        inner.protocol = negotiated.version;
        inner.defined = negotiated.capabilities.guest_defined_capabilities.unwrap_or_default();
        inner.capabilities = negotiated.capabilities;
        inner.coracle = negotiated.coracle;
        let max_frame = inner.coracle.as_ref().map_or(GUEST_TO_HOST, |guest| guest.max_frame);
        let _ = inner.commands.send(Command::Agree {
            dialect: inner.dialect(),
            max_frame: max_frame.clamp(GUEST_TO_HOST, GUEST_TO_HOST_NEGOTIATED),
        });
        inner.introduce().await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The protocol version both ends speak: 4.
    pub fn protocol(&self) -> u32 {
        self.inner.protocol
    }

    /// What this guest can do.
    pub fn capabilities(&self) -> &GuestDefinedCapabilities {
        &self.inner.defined
    }

    /// The guest's operating system in lower case, `linux` or `windows`.
    pub fn os(&self) -> String {
        self.inner.capabilities.os()
    }

    /// The number of this session; `None` with a guest that keeps none.
    pub fn session(&self) -> Option<u64> {
        self.inner.coracle.as_ref().map(|guest| guest.session)
    }

    /// Names this boot of the guest; another one means that all it held is gone.
    pub fn boot_id(&self) -> Option<&str> {
        self.inner.coracle.as_ref().map(|guest| guest.boot_id.as_str())
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`BridgeError::ContainerExists`] without asking the guest while a container
    /// of this id lives. After any other error the id is free again.
    pub async fn create_container(
        &self,
        id: impl Into<ContainerId>,
        config: &ContainerConfig,
    ) -> Result<Container, BridgeError> {
        let id = id.into();
        let registry = &self.inner.registry;
        if registry.closed.is_cancelled() {
            return Err(registry.cause());
        }
        let Some(phase) = registry.register(id.as_str()) else {
            return Err(BridgeError::ContainerExists(id));
        };
        let creates = Some((Arc::clone(registry), id.as_str().to_owned()));
        let request = Create::new(config.clone());
        let limit = self.inner.options.rpc_timeout;
        let response = self.inner.exchange(&id, request, Manner::Steady, limit, creates).await?;
        succeeded(response)?;
        Ok(Container::new(self.clone(), id, phase))
    }

    /// Starts a process of the VM itself.
    ///
    /// # Errors
    /// As [`Container::create_process`].
    pub async fn create_process(
        &self,
        parameters: &ProcessParameters,
    ) -> Result<Process, BridgeError> {
        process::start(self, ContainerId::vm(), parameters.clone()).await
    }

    /// Adds, removes or changes a resource of the VM (the null id) or of a container.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn modify(
        &self,
        id: &ContainerId,
        verb: Verb,
        resource: &Resource,
    ) -> Result<(), BridgeError> {
        let request =
            Modify::new(verb, resource).map_err(|fault| BridgeError::Encode(Arc::new(fault)))?;
        self.inner.steady(id, request).await?;
        Ok(())
    }

    /// The stacks of the guest program, for people.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn dump_stacks(&self) -> Result<String, BridgeError> {
        let stacks = self.inner.steady(&ContainerId::vm(), DumpStacks {}).await?;
        Ok(stacks.guest_stacks)
    }

    /// Removes what is left of a container in the guest.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn delete_container_state(&self, id: &ContainerId) -> Result<(), BridgeError> {
        self.inner.steady(id, DeleteContainerState {}).await?;
        Ok(())
    }

    /// What is asked about a container. May be given up.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn properties(
        &self,
        id: &ContainerId,
        query: &PropertiesQuery,
    ) -> Result<Properties, BridgeError> {
        let request = GetProperties { query: query.clone().into() };
        let answer = self.inner.cancellable(id, request).await?;
        Ok(answer.properties.0.unwrap_or_default())
    }

    /// Asks the guest to power the VM off. It does not answer: the bridge ends.
    ///
    /// # Errors
    /// [`BridgeError::DeadlineExceeded`] when the bridge is still there after 30 s,
    /// and the guest's answer should it refuse.
    pub async fn shutdown(&self) -> Result<(), BridgeError> {
        let vm = ContainerId::vm();
        let asked = self.inner.within(SHUTDOWN_TIMEOUT, "shutdown", &vm, ShutdownGraceful {}).await;
        match asked {
            Err(error) if error.is_closed() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Makes the guest power the VM off at once; otherwise as [`shutdown`](Self::shutdown).
    ///
    /// # Errors
    /// As [`shutdown`](Self::shutdown).
    pub async fn power_off(&self) -> Result<(), BridgeError> {
        let vm = ContainerId::vm();
        let asked = self.inner.within(SHUTDOWN_TIMEOUT, "power-off", &vm, ShutdownForced {}).await;
        match asked {
            Err(error) if error.is_closed() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// What the guest holds.
    ///
    /// # Errors
    /// [`BridgeError::NoSessions`] with a guest that does not keep sessions.
    pub async fn list_state(&self) -> Result<State, BridgeError> {
        self.inner.needs_sessions("listing what the guest holds")?;
        self.inner.cancellable(&ContainerId::vm(), ListState {}).await
    }

    /// Goes on with a container of an earlier session.
    ///
    /// # Errors
    /// [`BridgeError::NoSuchContainer`] when the guest holds none of this id.
    pub async fn resume_container(
        &self,
        id: impl Into<ContainerId>,
    ) -> Result<Container, BridgeError> {
        let id = id.into();
        self.inner.needs_sessions("resuming a container")?;
        // Registered before asking, so that an exit in between is not missed.
        let Some(phase) = self.inner.registry.register(id.as_str()) else {
            return Err(BridgeError::ContainerExists(id));
        };
        let free = |error| {
            self.inner.registry.deregister(id.as_str());
            Err(error)
        };
        let state = match self.list_state().await {
            Ok(state) => state,
            Err(error) => return free(error),
        };
        let Some(found) = state.containers.iter().find(|found| found.container_id == id) else {
            return free(BridgeError::NoSuchContainer(id.clone()));
        };
        if !found.exit_type.is_empty() {
            let kind = crate::message::NotificationType(found.exit_type.clone().into());
            self.inner.registry.exited(id.as_str(), kind);
        }
        Ok(Container::new(self.clone(), id, phase))
    }

    /// Goes on with a process of an earlier session: its streams continue at the
    /// offsets in `stdio`, and its exit code is waited for again. The null id
    /// stands for a process of the VM itself.
    ///
    /// # Errors
    /// The guest's, when it holds no such process or an offset was never written.
    pub async fn resume_process(
        &self,
        id: &ContainerId,
        pid: u32,
        stdio: StdioResume,
    ) -> Result<Process, BridgeError> {
        self.inner.needs_sessions("resuming a process")?;
        process::resume(self, id.clone(), pid, stdio).await
    }

    /// Ends the bridge: every pending call fails with [`BridgeError::Closed`].
    /// What runs in the guest goes on.
    pub fn close(&self) {
        let _ = self.inner.commands.send(Command::Close);
    }

    /// Waits for the end of the bridge, and tells its cause.
    pub async fn closed(&self) -> BridgeError {
        self.inner.registry.closed.cancelled().await;
        self.inner.registry.cause()
    }
}

impl Inner {
    pub(super) fn dialect(&self) -> Dialect {
        if self.coracle.is_some() { Dialect::Coracle } else { Dialect::Plain }
    }

    /// The session's number when the guest speaks our extension.
    pub(super) fn session(&self) -> Option<u64> {
        self.coracle.as_ref().map(|guest| guest.session)
    }

    pub(super) fn needs_sessions(&self, what: &'static str) -> Result<(), BridgeError> {
        match self.dialect() {
            Dialect::Coracle => Ok(()),
            Dialect::New | Dialect::Plain => Err(BridgeError::NoSessions(what)),
        }
    }

    async fn negotiate(&self) -> Result<Negotiated, BridgeError> {
        let mut session = match self.options.session {
            Session::Plain => None,
            Session::Number(number) => Some(number),
            Session::Next => Some(1),
        };
        let mut retried = false;
        loop {
            let offer = session.map(|session| CoracleHost {
                version: CoracleHost::VERSION,
                session,
                max_frame: GUEST_TO_HOST_NEGOTIATED,
            });
            let limit = self.options.rpc_timeout;
            let request = Negotiate::new(offer);
            let id = ContainerId::default();
            let response = self.exchange(&id, request, Manner::Cancellable, limit, None).await?;
            let current = response.body.coracle.as_ref().map(|guest| guest.session);
            if let (false, Some(offered), Some(current)) =
                (response.result.is_ok(), session, current)
                && offered <= current
            {
                // Asked for the next session we try once more, as that should do.
                let next = current.checked_add(1).filter(|_| !retried);
                match (self.options.session, next) {
                    (Session::Next, Some(next)) => session = Some(next),
                    _ => return Err(BridgeError::StaleSession { offered, current }),
                }
                retried = true;
                continue;
            }
            let negotiated = succeeded(response)?;
            if negotiated.version != PROTOCOL_VERSION {
                return Err(BridgeError::UnexpectedVersion(negotiated.version));
            }
            return Ok(negotiated);
        }
    }

    /// Some guests (of Windows) want to hear of the VM itself as of a container.
    async fn introduce(&self) -> Result<(), BridgeError> {
        let vm = ContainerId::vm();
        if self.capabilities.send_host_create_message {
            let request = Create::new(SystemConfig { system_type: "Container".to_owned() });
            self.cancellable(&vm, request).await?;
            if self.capabilities.send_host_start_message {
                self.cancellable(&vm, Start {}).await?;
            }
        }
        Ok(())
    }

    /// A call that is seen through.
    pub(super) async fn steady<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let limit = self.options.rpc_timeout;
        succeeded(self.exchange(id, request, Manner::Steady, limit, None).await?)
    }

    /// A call whose caller may give up.
    async fn cancellable<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let limit = self.options.rpc_timeout;
        succeeded(self.exchange(id, request, Manner::Cancellable, limit, None).await?)
    }

    /// A cancellable call that is given up after `limit`.
    pub(super) async fn within<R: Rpc>(
        &self,
        limit: Duration,
        operation: &'static str,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        match tokio::time::timeout(limit, self.cancellable(id, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(BridgeError::DeadlineExceeded {
                operation,
                container: id.clone(),
                seconds: limit.as_secs(),
            }),
        }
    }

    async fn exchange<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
        manner: Manner,
        limit: Duration,
        creates: Option<(Arc<Registry>, String)>,
    ) -> Result<Response<R::Answer>, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let reply = Reply { request: R::REQUEST, sender, creates };
        self.send(id, request, manner, Some(limit), Box::new(reply))?;
        match self.receive(answer).await? {
            Answer::Whole(response) => Ok(response),
            Answer::Held(held) => {
                let text = self.fetch(held.handle, held.length).await?;
                decode_answer(R::REQUEST, text.as_bytes())
                    .map_err(|fatal| BridgeError::LongAnswer(fatal.to_string()))
            }
        }
    }

    /// Hands a call to the driver.
    fn send<R: Rpc>(
        &self,
        id: &ContainerId,
        body: R,
        manner: Manner,
        limit: Option<Duration>,
        settle: Box<dyn Settle>,
    ) -> Result<(), BridgeError> {
        let mut request = Request::new(id.clone(), body);
        if self.protocol != 0 {
            request.trace = self.options.trace.clone();
        }
        let body = match request.encode(Side::Host) {
            Ok(body) => body,
            Err(fault) => {
                let error = BridgeError::Encode(Arc::new(fault));
                settle.fail(error.clone());
                return Err(error);
            }
        };
        let cancellable = matches!(manner, Manner::Cancellable);
        let call = Call { request: R::REQUEST, limit, cancellable, settle };
        match self.commands.send(Command::Call { body, call }) {
            Ok(()) => Ok(()),
            Err(refused) => {
                let cause = self.registry.cause();
                if let Command::Call { call, .. } = refused.0 {
                    call.settle.fail(cause.clone());
                }
                Err(cause)
            }
        }
    }

    async fn receive<T>(
        &self,
        answer: oneshot::Receiver<Result<T, BridgeError>>,
    ) -> Result<T, BridgeError> {
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                // The driver dropped the call together with the bridge.
                self.registry.closed.cancelled().await;
                Err(self.registry.cause())
            }
        }
    }

    /// Fetches a long answer from the guest, piece by piece.
    async fn fetch(&self, handle: u32, length: u64) -> Result<String, BridgeError> {
        if length > LONG_ANSWER_MAX {
            return Err(BridgeError::LongAnswer(format!("{length} bytes are too many")));
        }
        let vm = ContainerId::vm();
        let mut text = String::new();
        while (text.len() as u64) < length {
            let request = Chunk { handle, offset: text.len() as u64 };
            let limit = self.options.rpc_timeout;
            let (sender, answer) = oneshot::channel();
            let reply: Reply<ChunkData> = Reply { request: Chunk::REQUEST, sender, creates: None };
            self.send(&vm, request, Manner::Cancellable, Some(limit), Box::new(reply))?;
            let piece = match self.receive(answer).await? {
                Answer::Whole(response) => succeeded(response)?.text,
                Answer::Held(_) => String::new(),
            };
            if piece.is_empty() {
                let at = text.len();
                return Err(BridgeError::LongAnswer(format!("it stops at {at} of {length}")));
            }
            text.push_str(&piece);
        }
        Ok(text)
    }

    /// Sends a wait for a process and leaves it pending.
    pub(super) fn wait_for_process(
        &self,
        id: &ContainerId,
        pid: u32,
    ) -> watch::Receiver<ExitResult> {
        let (tell, exit) = watch::channel(None);
        let request = WaitForProcess { process_id: pid, timeout_in_ms: WAIT_FOREVER };
        // A failure reaches the receiver.
        let _ = self.send(id, request, Manner::Steady, None, Box::new(ExitReply { tell }));
        exit
    }

    /// Tells the guest that an exit is recorded, and with `discard` that the streams
    /// may go, too. Nothing to tell a plain guest.
    pub(super) async fn acknowledge(
        &self,
        id: &ContainerId,
        process_id: Option<u32>,
        discard: bool,
    ) -> Result<(), BridgeError> {
        if self.coracle.is_some() {
            self.steady(id, AckExit { process_id, discard }).await?;
        }
        Ok(())
    }

    /// The next port for a standard stream.
    pub(super) fn next_port(&self) -> Result<u32, BridgeError> {
        self.next_port
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| port.checked_add(1))
            .map_err(|_| BridgeError::PortsUsedUp)
    }
}
