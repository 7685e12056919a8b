//! What the guest can do, as the server needs it.
//!
//! The server keeps every table of the protocol itself: which containers and
//! processes there are, who waits for them, their streams and their exits. Behind
//! [`GuestService`] is mechanism only. So a fake guest is a few lines, and what a
//! session promises is proven without a VM.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::io::{AsyncBufRead, AsyncWrite};

use crate::hresult::Hresult;
use crate::message::incoming::Change;
use crate::message::{
    Capabilities, ContainerConfig, ProcessParameters, Properties, PropertiesQuery,
};

/// Resolves once, with the exit code of a process: its own, or 128 plus the
/// number of the signal that ended it.
pub type ExitFuture = BoxFuture<'static, u32>;

/// The end of a pipe or terminal that the server writes to.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// What comes out of the end of a pipe or terminal, in pieces as they were read: nothing is copied until it
/// is sent.
pub type Source = BoxStream<'static, std::io::Result<Bytes>>;

/// A container whose init process exists but does not run yet.
pub struct Created {
    /// Pid of the init process.
    pub pid: u32,
    /// Its end, whether or not it was ever started.
    pub exit: ExitFuture,
}

/// A process that runs.
pub struct Started {
    /// Its pid in the VM's own pid namespace.
    pub pid: u32,
    /// Its standard input, when asked for. Gets `shutdown` at the end of the
    /// stream and is then dropped; for a terminal the implementation decides what
    /// `shutdown` means there.
    pub stdin: Option<Sink>,
    /// Its standard output, or its terminal, when asked for.
    pub stdout: Option<Source>,
    /// Its standard error, when asked for.
    pub stderr: Option<Source>,
    /// Its end. Ignored for an init process: [`Created::exit`] counts.
    pub exit: ExitFuture,
}

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// A live process, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its container; `None` for a process of the VM itself.
    pub container: Option<String>,
    /// The pid its [`Started`] or [`Created`] gave.
    pub pid: u32,
}

/// How something is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By asking (SIGTERM).
    Graceful,
    /// At once (SIGKILL).
    Forced,
}

/// Why the guest could not do what was asked, as it goes to the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// The result code.
    pub hresult: Hresult,
    /// The text the host shows.
    pub message: String,
}

impl ServiceError {
    /// An error with a code and a text of its own.
    pub fn new(hresult: Hresult, message: impl Into<String>) -> Self {
        Self { hresult, message: message.into() }
    }

    /// Any failure that has no code of its own.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Hresult::FAIL, message.to_string())
    }

    /// An argument that makes no sense.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Hresult::INVALID_ARGUMENT, message.to_string())
    }

    /// Something this guest does not do.
    pub fn not_implemented(message: impl fmt::Display) -> Self {
        Self::new(Hresult::NOT_IMPLEMENTED, message.to_string())
    }
}

/// A bare code; the text is hcsshim's for such an error.
impl From<Hresult> for ServiceError {
    fn from(hresult: Hresult) -> Self {
        Self::new(hresult, format!("HRESULT: 0x{:08x}", hresult.bits()))
    }
}

impl From<std::io::Error> for ServiceError {
    fn from(fault: std::io::Error) -> Self {
        Self::failed(fault)
    }
}

/// The mechanism behind the server: one method for each thing a message asks for.
///
/// The server calls them concurrently, each from a task of its own. A call is
/// never cancelled half-way, not even when the connection that asked is lost.
/// It makes sure that an id or pid it passes is known and, except for
/// [`delete_container`](Self::delete_container), that a [`Target`] has not exited
/// as far as the server knows.
#[async_trait]
pub trait GuestService: Send + Sync + 'static {
    /// What this guest can do, for the negotiation.
    fn capabilities(&self) -> Capabilities {
        Capabilities::linux()
    }

    /// Makes a container with a process that waits to be started.
    async fn create_container(
        &self,
        id: &str,
        config: ContainerConfig,
    ) -> Result<Created, ServiceError>;

    /// Lets a container's init process run.
    async fn start_init(
        &self,
        id: &str,
        parameters: ProcessParameters,
    ) -> Result<Started, ServiceError>;

    /// Starts one more process in a container; `parameters.oci_process` says which.
    async fn exec(&self, id: &str, parameters: ProcessParameters) -> Result<Started, ServiceError>;

    /// Starts a process of the VM itself.
    async fn exec_in_vm(&self, parameters: ProcessParameters) -> Result<Started, ServiceError>;

    /// Sends a signal (1 to 64) to a process.
    async fn signal(&self, target: &Target, signal: i32) -> Result<(), ServiceError>;

    /// Sets the size of a process's terminal, in characters.
    async fn resize(&self, target: &Target, width: u16, height: u16) -> Result<(), ServiceError>;

    /// Signals a container's init process; its end shows in [`Created::exit`].
    async fn shutdown_container(&self, id: &str, stop: Stop) -> Result<(), ServiceError>;

    /// Removes all that is left of a container; kills it when it still lives.
    async fn delete_container(&self, id: &str) -> Result<(), ServiceError>;

    /// What is asked about a container.
    async fn properties(
        &self,
        id: &str,
        query: PropertiesQuery,
    ) -> Result<Properties, ServiceError>;

    /// Adds, removes or changes a resource of the VM.
    async fn modify(&self, change: Change) -> Result<(), ServiceError>;

    /// Changes a resource of one container.
    async fn modify_container(&self, id: &str, change: Change) -> Result<(), ServiceError>;

    /// The stacks of the guest program, as text.
    async fn dump_stacks(&self) -> Result<String, ServiceError>;

    /// Powers the VM off; not answered. Returns when that is on its way.
    async fn power_off(&self, stop: Stop);
}

/// Dials the ports on which the host listens for stdio.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects to a port of the host. Bounded in time by the implementation.
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Connection>>;
}

/// A connection in both directions, with half-close by `shutdown`.
pub trait Connection: AsyncBufRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncBufRead + AsyncWrite + Send + Unpin> Connection for T {}
