//! The host's end of one bridge connection.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::answer::succeeded;
use super::driver::{Command, drive};
use super::error::BridgeError;
use super::registry::Registry;
use super::rpc::{Inner, Manner};
use super::{Container, Process, StdioResume, process};
use crate::channel::ChannelDir;
use crate::frame::{GUEST_TO_HOST, GUEST_TO_HOST_NEGOTIATED};
use crate::message::{
    Capabilities, ContainerConfig, ContainerId, Create, DeleteContainerState, DumpStacks,
    GetProperties, GuestDefinedCapabilities, ListState, Modify, ProcessParameters, Properties,
    PropertiesQuery, Resource, ShutdownForced, ShutdownGraceful, State, TraceContext, Verb,
};
use crate::port::STDIO_FIRST;

/// How long the guest may take for an answer before the bridge is given up.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How long a shutdown may take before its caller is told so.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

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

/// The bridge to a guest. Cheap to clone; the connection is closed when the last
/// handle, containers and processes included, is gone.
///
/// Unless said otherwise a call, once sent, is seen through even if its future is
/// dropped, and a guest that does not answer within the limit loses the bridge.
#[derive(Clone)]
pub struct GuestConnection {
    pub(super) inner: Arc<Inner>,
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

    /// Ends the bridge: every pending call and every wait for a process fails with
    /// [`BridgeError::Closed`], and waits for containers end. What runs in the guest
    /// goes on.
    pub fn close(&self) {
        self.inner.registry.done.store(true, Ordering::Relaxed);
        let _ = self.inner.commands.send(Command::Close);
    }

    /// Waits for the end of the bridge, and tells its cause.
    pub async fn closed(&self) -> BridgeError {
        self.inner.registry.closed.cancelled().await;
        self.inner.registry.cause()
    }
}
