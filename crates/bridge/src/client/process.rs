//! A process in the guest, as the host holds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answer::ExitResult;
use super::connection::GuestConnection;
use super::error::BridgeError;
use super::io_channel::IoChannel;
use super::streams::{StdinCarrier, StdinWriter, Stdio, StdoutReader};
use crate::channel::ChannelListener;
use crate::hresult::Hresult;
use crate::message::{
    AttachStdio, Attached, ContainerId, ExecuteProcess, ExecuteSettings, ProcessParameters,
    ResizeConsole, SignalOptions, SignalProcess, VsockStdioRelay,
};
use crate::stdio::{
    DEFAULT_RING, OFFSET_MAX, OutputRing, SharedRing, StdStream, WhenFull, serve_output,
    serve_output_raw,
};

/// Where the standard streams of a resumed process go on.
#[derive(Debug, Default)]
pub struct StdioResume {
    /// Standard input.
    pub stdin: StdinResume,
    /// Offset of the first byte of stdout to read; `None` leaves the stream in the
    /// guest.
    pub stdout: Option<u64>,
    /// As `stdout`, for stderr.
    pub stderr: Option<u64>,
}

/// How standard input goes on.
#[derive(Debug, Default)]
pub enum StdinResume {
    /// Not at all, for now.
    #[default]
    Detached,
    /// With a new writer, behind the last byte the process took.
    Fresh,
    /// With the ring of [`Process::detach_stdin`]: what the process did not take is
    /// sent again, and writers of that ring go on as if nothing had been.
    Ring(SharedRing),
}

/// A process. Dropping it leaves the process alone, but takes its standard input's
/// carrier away: keep it as long as a [`StdinWriter`] is in use.
#[derive(Debug)]
pub struct Process {
    connection: GuestConnection,
    container: ContainerId,
    pid: u32,
    exit: watch::Receiver<ExitResult>,
    stdio: Mutex<Stdio>,
    stdin: Option<StdinCarrier>,
    stdin_kept: AtomicBool,
    /// Cancelled to fail streams that never connected.
    closed: CancellationToken,
}

/// The ports of a process's streams, bound and not yet connected.
#[derive(Default)]
struct Ports {
    stdin: Option<(u32, ChannelListener)>,
    stdout: Option<(u32, ChannelListener)>,
    stderr: Option<(u32, ChannelListener)>,
}

impl Ports {
    /// Binds a port for each wanted stream, in the order stdin, stdout, stderr.
    fn bind(
        connection: &GuestConnection,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Self, BridgeError> {
        let inner = &connection.inner;
        let listen = |wanted: bool, stream| {
            if !wanted {
                return Ok(None);
            }
            let port = inner.next_port()?;
            match inner.options.channel.listen(port) {
                Ok(listener) => Ok(Some((port, listener))),
                Err(source) => Err(BridgeError::Listen { port, stream, source: Arc::new(source) }),
            }
        };
        Ok(Self {
            stdin: listen(stdin, StdStream::In)?,
            stdout: listen(stdout, StdStream::Out)?,
            stderr: listen(stderr, StdStream::Err)?,
        })
    }

    /// As the guest is told of them; `None` when there are none.
    fn relay(&self) -> Option<VsockStdioRelay> {
        let number = |port: &Option<(u32, ChannelListener)>| port.as_ref().map_or(0, |(n, _)| *n);
        let relay = VsockStdioRelay {
            std_in: number(&self.stdin),
            std_out: number(&self.stdout),
            std_err: number(&self.stderr),
        };
        (relay != VsockStdioRelay::default()).then_some(relay)
    }
}

/// Starts a process and waits for its exit from then on. Seen through in a task of
/// its own, which ends with its call: a caller that gives up must not leave a
/// process behind whose exit nobody fetches.
pub(super) async fn start(
    connection: &GuestConnection,
    container: ContainerId,
    parameters: ProcessParameters,
) -> Result<Process, BridgeError> {
    let connection = connection.clone();
    let work = tokio::spawn(async move { execute(connection, container, parameters).await });
    // The task neither panics nor is it aborted; if so, all the same there is no bridge.
    work.await.unwrap_or(Err(BridgeError::Closed))
}

async fn execute(
    connection: GuestConnection,
    container: ContainerId,
    parameters: ProcessParameters,
) -> Result<Process, BridgeError> {
    let ports = Ports::bind(
        &connection,
        parameters.create_std_in_pipe,
        parameters.create_std_out_pipe,
        parameters.create_std_err_pipe,
    )?;
    let relay = ports.relay();
    let streams = Streams::accept(&connection, ports);
    let request = ExecuteProcess {
        settings: ExecuteSettings {
            process_parameters: parameters.into(),
            stdio_relay_settings: None,
            vsock_stdio_relay_settings: relay,
        },
    };
    let executed = connection.inner.steady(&container, request).await?;
    let start = Start { ring: None, attached: Attached::default(), asked: Attached::default() };
    Ok(Process::new(connection, container, executed.process_id, streams, start))
}

/// Connects a process of an earlier session.
pub(super) async fn resume(
    connection: &GuestConnection,
    container: ContainerId,
    pid: u32,
    resume: StdioResume,
) -> Result<Process, BridgeError> {
    let (stdin, ring) = match resume.stdin {
        StdinResume::Detached => (false, None),
        StdinResume::Fresh => (true, None),
        StdinResume::Ring(ring) => (true, Some(ring)),
    };
    let ports = Ports::bind(connection, stdin, resume.stdout.is_some(), resume.stderr.is_some())?;
    let relay = ports.relay();
    let streams = Streams::accept(connection, ports);
    let asked = Attached {
        std_in: 0,
        std_out: resume.stdout.unwrap_or_default(),
        std_err: resume.stderr.unwrap_or_default(),
    };
    let request = AttachStdio {
        process_id: pid,
        vsock_stdio_relay_settings: relay.unwrap_or_default(),
        std_out: asked.std_out,
        std_err: asked.std_err,
    };
    let attached = connection.inner.steady(&container, request).await?;
    let furthest = attached.std_in.max(attached.std_out).max(attached.std_err);
    if furthest > OFFSET_MAX {
        return Err(BridgeError::Offset { pid, offset: furthest });
    }
    let start = Start { ring, attached, asked };
    Ok(Process::new(connection.clone(), container, pid, streams, start))
}

/// Streams that wait for the guest to connect them.
struct Streams {
    stdin: Option<IoChannel>,
    stdout: Option<IoChannel>,
    stderr: Option<IoChannel>,
    closed: CancellationToken,
}

/// Where the streams of a process begin.
struct Start {
    ring: Option<SharedRing>,
    attached: Attached,
    asked: Attached,
}

impl Streams {
    fn accept(connection: &GuestConnection, ports: Ports) -> Self {
        let session = connection.inner.session();
        let closed = connection.inner.registry.closed.child_token();
        let accept = |bound: Option<(u32, ChannelListener)>| {
            let (port, listener) = bound?;
            Some(IoChannel::accept(listener, port, session, closed.clone()))
        };
        Self {
            stdin: accept(ports.stdin),
            stdout: accept(ports.stdout),
            stderr: accept(ports.stderr),
            closed: closed.clone(),
        }
    }
}

impl Process {
    fn new(
        connection: GuestConnection,
        container: ContainerId,
        pid: u32,
        streams: Streams,
        start: Start,
    ) -> Self {
        let framed = connection.inner.session().is_some();
        let Start { ring, attached, asked } = start;
        let reader = |channel: IoChannel, from: u64, asked: u64| match framed {
            true => StdoutReader::framed(channel, from, from.saturating_sub(asked)),
            false => StdoutReader::bare(channel),
        };
        let stdin = streams.stdin.map(|channel| carry(channel, ring, attached.std_in, framed));
        let stdio = Stdio {
            stdin: stdin.as_ref().map(|carrier| StdinWriter::new(carrier.ring.clone())),
            stdout: streams.stdout.map(|channel| reader(channel, attached.std_out, asked.std_out)),
            stderr: streams.stderr.map(|channel| reader(channel, attached.std_err, asked.std_err)),
        };
        let exit = connection.inner.wait_for_process(&container, pid);
        Self {
            connection,
            container,
            pid,
            exit,
            stdio: Mutex::new(stdio),
            stdin,
            stdin_kept: AtomicBool::new(false),
            closed: streams.closed,
        }
    }

    /// Its id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The container it runs in; the null id is the VM.
    pub fn container(&self) -> &ContainerId {
        &self.container
    }

    /// Its streams, to the first caller.
    pub fn take_stdio(&self) -> Stdio {
        std::mem::take(&mut *self.stdio.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends its standard input, behind everything written so far. Again is no error.
    pub fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.ring.finish();
        }
    }

    /// Whether a connection carries standard input, or all of it was taken. `false`
    /// after a loss: [`GuestConnection::resume_process`] with the ring of
    /// [`detach_stdin`](Self::detach_stdin) connects it again.
    pub fn stdin_is_carried(&self) -> bool {
        self.stdin.as_ref().is_none_or(StdinCarrier::is_well)
    }

    /// Takes standard input away from this handle, to go on with it in another
    /// session: see [`StdinResume::Ring`]. `None` when it was not asked for.
    pub fn detach_stdin(&self) -> Option<SharedRing> {
        let stdin = self.stdin.as_ref()?;
        self.stdin_kept.store(true, Ordering::Relaxed);
        Some(stdin.detach())
    }

    /// Sets the size of its terminal, in characters.
    ///
    /// # Errors
    /// The guest's when it has no terminal, and those of any call.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), BridgeError> {
        let request = ResizeConsole { process_id: self.pid, height, width };
        self.connection.inner.steady(&self.container, request).await?;
        Ok(())
    }

    /// Sends it a signal, or SIGKILL without a number; whether it was still there
    /// to get it.
    ///
    /// # Errors
    /// Those of any call.
    pub async fn signal(&self, signal: Option<i32>) -> Result<bool, BridgeError> {
        let options = signal.map(|signal| SignalOptions { signal });
        let request = SignalProcess { process_id: self.pid, options };
        match self.connection.inner.steady(&self.container, request).await {
            Ok(_) => Ok(true),
            Err(error) if error.hresult() == Some(Hresult::NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// [`signal`](Self::signal) without a number.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn kill(&self) -> Result<bool, BridgeError> {
        self.signal(None).await
    }

    /// Waits for its exit code; for any number of callers, at any time.
    ///
    /// # Errors
    /// The bridge's when it is lost first; a guest that keeps sessions then keeps
    /// the exit for the next.
    pub async fn wait(&self) -> Result<u32, BridgeError> {
        let mut exit = self.exit.clone();
        // Cloned out at once: what `wait_for` gives must not be held across an await.
        let known = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        match known {
            Some(exit) => exit,
            None => Err(self.connection.closed().await),
        }
    }

    /// Its exit code, without waiting.
    ///
    /// # Errors
    /// [`BridgeError::NotExited`], and the bridge's when it was lost first.
    pub fn exit_code(&self) -> Result<u32, BridgeError> {
        self.exit.borrow().clone().unwrap_or(Err(BridgeError::NotExited(self.pid)))
    }

    /// Tells the guest that the exit is recorded, so that no later session hears of
    /// it. What is left of the streams stays in the guest until it is read.
    ///
    /// # Errors
    /// Those of any call. A plain guest is not asked.
    pub async fn acknowledge_exit(&self) -> Result<(), BridgeError> {
        let inner = &self.connection.inner;
        inner.acknowledge(&self.container, Some(self.pid), false).await
    }

    /// Is done with the process: fails streams that never connected, drops those
    /// not taken, and once the exit is known lets the guest forget the process and
    /// what nobody reads of its streams. A process that runs is left alone.
    ///
    /// # Errors
    /// Those of any call, but for a bridge that is closed.
    pub async fn close(&self) -> Result<(), BridgeError> {
        self.closed.cancel();
        drop(self.take_stdio());
        if self.exit_code().is_err() {
            return Ok(());
        }
        let inner = &self.connection.inner;
        match inner.acknowledge(&self.container, Some(self.pid), true).await {
            Err(error) if error.is_closed() => Ok(()),
            other => other,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let (Some(stdin), false) = (&self.stdin, self.stdin_kept.load(Ordering::Relaxed)) {
            // Nobody carries it any more: its writers must not wait for ever.
            stdin.ring.stop();
        }
    }
}

/// Starts the task that carries standard input; it ends with its process's handle.
fn carry(channel: IoChannel, ring: Option<SharedRing>, from: u64, framed: bool) -> StdinCarrier {
    let ring = ring.unwrap_or_else(|| {
        SharedRing::new(OutputRing::starting_at(from, DEFAULT_RING, WhenFull::Block))
    });
    let carried = ring.clone();
    let task = tokio::spawn(async move {
        let ended = match framed {
            true => serve_output(&carried, channel, from).await,
            false => serve_output_raw(&carried, channel).await,
        };
        if let Err(fault) = ended {
            tracing::debug!(%fault, "standard input is not carried any more");
        }
    });
    StdinCarrier::new(ring, task.abort_handle())
}
