//! Processes: starting, waiting, signalling, and connecting their streams.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::guest::{Link, Shared};
use super::service::{Connection, ServiceError, Sink, Source, Target};
use super::streams;
use super::table::{Phase, Streams};
use crate::hresult::Hresult;
use crate::message::incoming::Execution;
use crate::message::{
    AttachStdio, Attached, ContainerId, ResizeConsole, SignalProcess, VsockStdioRelay,
    WAIT_FOREVER, WaitForProcess,
};
use crate::stdio::{self, Input, SharedRing, StdStream};

/// SIGKILL: what a signal request without a signal means.
const SIGKILL: i32 = 9;

/// Highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

impl Shared {
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
        stdin: Option<Sink>,
        stdout: Option<Source>,
        stderr: Option<Source>,
    ) -> Streams {
        let fill = |source| {
            let ring = SharedRing::with_capacity(self.options.ring, self.options.when_full);
            let closed = self.closed.clone();
            self.move_bytes(streams::fill(source, ring.clone(), closed));
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
        self.move_bytes(async move {
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

    /// Waits for the end of a process, or for the wait's own limit. Unless the process
    /// was not there, the caller must report the fate of the answer to the table.
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
}

/// The container a request names, or `None` for the VM itself.
fn container_name(id: &ContainerId) -> Option<&str> {
    (!id.is_vm()).then_some(id.as_str())
}
