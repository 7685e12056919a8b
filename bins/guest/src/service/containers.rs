//! The life of a container.
//!
//! ```text
//!   create ──▶ created ──start──▶ running ──▶ exited ──delete──▶ gone
//!                 └────────────── delete (kills) ─────────────────┘
//! ```
//! The streams of the init process exist from `create` on, because its descriptors are fixed
//! then; which of them the host wants is known at `start`. A stream nobody wants is read and
//! thrown away, so that writing to it does no harm.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::{ContainerConfig, ProcessParameters};
use coracle_bridge::server::{Created, ServiceError, Started, Stop};
use libcontainer::oci_spec::runtime::{
    LinuxNamespaceType, LinuxSeccomp, Process as OciProcess, Spec,
};
use nix::sys::signal::Signal;

use super::errors;
use super::modify::blocking;
use super::{Agent, Process, started};
use crate::container::launch::TIMEOUT;
use crate::container::request::{Exec, Request};
use crate::container::{self, is_valid_id, own_namespaces};
use crate::process::streams::{self, AgentEnds, Wanted};
use crate::process::terminal::Terminal;
use crate::reaper::Child;
use crate::sys;

/// What the agent remembers of a container.
#[derive(Debug)]
pub struct Container {
    id: String,
    /// Its init as a descriptor: joining by pid could hit another process.
    init_handle: OwnedFd,
    init: Child,
    /// The init process as specified, of which further processes inherit.
    process: OciProcess,
    seccomp: Option<LinuxSeccomp>,
    namespaces: Vec<LinuxNamespaceType>,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
    has_poststart_hooks: bool,
    terminal: Option<Terminal>,
    /// The agent's ends of the init's streams, until it is started.
    streams: Mutex<Option<AgentEnds>>,
}

impl Container {
    /// Another descriptor of its init.
    pub(super) fn init_handle(&self) -> Result<OwnedFd, ServiceError> {
        Ok(self.init_handle.try_clone()?)
    }

    /// Whether its init has ended.
    pub(super) fn has_exited(&self) -> bool {
        self.init.while_alive(|_| ()).is_none()
    }
}

impl Agent {
    pub(super) fn container(&self, id: &str) -> Result<Arc<Container>, ServiceError> {
        self.containers().get(id).cloned().ok_or_else(|| Hresult::NO_SUCH_SYSTEM.into())
    }

    pub(super) async fn create(
        &self,
        id: &str,
        config: &ContainerConfig,
    ) -> Result<Created, ServiceError> {
        if !is_valid_id(id) {
            return Err(ServiceError::invalid(format!("{id:?} is no container id")));
        }
        let spec = config.oci_specification.as_ref();
        let spec = spec.ok_or_else(|| ServiceError::invalid("there is no OCI specification"))?;
        let mut spec: Spec = spec
            .decode()
            .map_err(|error| ServiceError::invalid(format!("the OCI specification: {error}")))?;
        let process = spec.process().clone();
        let process = process.ok_or_else(|| ServiceError::invalid("there is no process"))?;
        let terminal = process.terminal().unwrap_or(false);
        let wanted = Wanted { stdin: !terminal, stdout: !terminal, stderr: !terminal };
        let (workload, streams) = streams::make(wanted, self.channel.area())?;

        self.join_network(id, &mut spec).await?;
        let created = match lay_out(id, spec).await {
            Ok(spec) => self.create_in_network(id, &spec, process, &workload, streams).await,
            Err(error) => Err(error),
        };
        if created.is_err() {
            self.leave_network(id).await;
        }
        created
    }

    async fn create_in_network(
        &self,
        id: &str,
        spec: &Spec,
        process: OciProcess,
        workload: &streams::WorkloadEnds,
        streams: AgentEnds,
    ) -> Result<Created, ServiceError> {
        let blueprint = Blueprint::of(id, spec);
        let terminal = process.terminal().unwrap_or(false);
        let request = Request::Create { id: id.to_owned(), terminal };
        let [stdin, stdout, stderr] = &workload.descriptors;
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        if let Some(owner) = container::owner(spec) {
            container::own(stdio, owner);
        }
        let launched = match self.launcher.run(&request, stdio, None).await {
            Ok(launched) => launched,
            Err(error) => {
                if error.leaves_something() {
                    // What the helper had no time to undo; the first error is what counts.
                    drop(self.remove(id).await);
                }
                container::discard(&container::bundle(id));
                return Err(errors::launch(&error));
            }
        };
        let init = launched.process.ok_or_else(|| ServiceError::failed("there is no init"))?;
        let handle = init.while_alive(sys::pidfd_open);
        let handle = match handle {
            Some(handle) => handle?,
            // Dead before it was started; it still is a container, and its exit will be told.
            None => streams::null()?,
        };
        let terminal = launched.terminal.map(Terminal::from_master).transpose()?;
        if let (Some(terminal), Some(size)) = (&terminal, process.console_size()) {
            started::resize(terminal, size.width(), size.height());
        }
        let pid = self.remember(&init, terminal.clone());
        let container = Container {
            id: id.to_owned(),
            init_handle: handle,
            init: init.clone(),
            process,
            seccomp: blueprint.seccomp,
            namespaces: blueprint.namespaces,
            cgroup: blueprint.cgroup,
            has_poststart_hooks: blueprint.has_poststart_hooks,
            terminal,
            streams: Mutex::new(Some(streams)),
        };
        self.containers().insert(id.to_owned(), Arc::new(container));
        Ok(Created { pid, exit: started::exit_of(init) })
    }

    pub(super) async fn start(
        &self,
        id: &str,
        parameters: &ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let container = self.container(id)?;
        let streams = container.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        let streams = streams.ok_or_else(|| ServiceError::from(Hresult::INVALID_STATE))?;
        if container.has_poststart_hooks {
            let null = streams::null()?;
            let request = Request::Start { id: id.to_owned() };
            let started = self.launcher.run(&request, [null.as_fd(); 3], None).await;
            started.map_err(|error| errors::launch(&error))?;
        } else {
            notify_start(id)?;
        }
        if let (Some(terminal), Some((height, width))) =
            (&container.terminal, parameters.console_size)
        {
            started::resize(terminal, u64::from(width), u64::from(height));
        }
        Ok(match &container.terminal {
            Some(terminal) => started::on_terminal(&container.init, terminal, parameters),
            None => started::on_pipes(&container.init, streams, parameters),
        })
    }

    pub(super) async fn exec_in_container(
        &self,
        id: &str,
        parameters: &ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let container = self.container(id)?;
        let process = parameters.oci_process.as_ref();
        let process = process.ok_or_else(|| ServiceError::invalid("there is no OCI process"))?;
        let mut process: OciProcess = process
            .decode()
            .map_err(|error| ServiceError::invalid(format!("the OCI process: {error}")))?;
        if !parameters.user.is_empty() {
            let mut user = process.user().clone();
            user.set_username(Some(parameters.user.clone()));
            process.set_user(user);
        }
        let size =
            parameters.console_size.map(|(height, width)| (u64::from(width), u64::from(height)));
        let size = size.or(process.console_size().map(|size| (size.width(), size.height())));
        let terminal = process.terminal().unwrap_or(false);
        let (workload, streams) =
            streams::make(started::wanted(parameters, terminal), self.channel.area())?;
        let request = Request::Exec(Box::new(Exec {
            process,
            init: container.process.clone(),
            seccomp: container.seccomp.clone(),
            namespaces: container.namespaces.clone(),
            cgroup: container.cgroup.clone(),
        }));
        let [stdin, stdout, stderr] = &workload.descriptors;
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let init = Some(container.init_handle.as_fd());
        let launched = self.launcher.run(&request, stdio, init).await;
        let launched = launched.map_err(|error| errors::launch(&error))?;
        let child = launched.process.ok_or_else(|| ServiceError::failed("there is no process"))?;
        let terminal = launched.terminal.map(Terminal::from_master).transpose()?;
        if let (Some(terminal), Some((width, height))) = (&terminal, size) {
            started::resize(terminal, width, height);
        }
        self.remember(&child, terminal.clone());
        Ok(match &terminal {
            Some(terminal) => started::on_terminal(&child, terminal, parameters),
            None => started::on_pipes(&child, streams, parameters),
        })
    }

    pub(super) fn stop_container(&self, id: &str, stop: Stop) -> Result<(), ServiceError> {
        let signal = match stop {
            Stop::Graceful => Signal::SIGTERM,
            Stop::Forced => Signal::SIGKILL,
        };
        match self.container(id)?.init.signal(signal)? {
            true => Ok(()),
            false => Err(Hresult::ALREADY_STOPPED.into()),
        }
    }

    pub(super) async fn delete(&self, id: &str) -> Result<(), ServiceError> {
        self.container(id)?;
        self.remove(id).await?;
        self.containers().remove(id);
        self.shown().forget(id);
        self.leave_network(id).await;
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), ServiceError> {
        let null = streams::null()?;
        let request = Request::Delete { id: id.to_owned() };
        let removed = self.launcher.run(&request, [null.as_fd(); 3], None).await;
        removed.map(drop).map_err(|error| errors::launch(&error))
    }

    /// Keeps a process for as long as it lives, and returns its pid.
    pub(super) fn remember(&self, child: &Child, terminal: Option<Terminal>) -> u32 {
        let pid = child.pid().as_raw().cast_unsigned();
        let processes = Arc::clone(&self.processes);
        let process = Process { child: child.clone(), terminal };
        processes.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, process);
        let child = child.clone();
        // Ends with the process.
        tokio::spawn(async move {
            child.wait().await;
            processes.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        });
        pid
    }
}

/// Settles a specification and puts it where the helper finds it, on a thread that a root on a share
/// without a server can hold up: that one is left to it.
async fn lay_out(id: &str, mut spec: Spec) -> Result<Spec, ServiceError> {
    let its = id.to_owned();
    let laid = blocking(move || match container::lay_out(&its, &mut spec) {
        Ok(()) => Ok(spec),
        Err(error) => Err(errors::layout(&error)),
    });
    let slow = format!("the root of container {id} is not read after {} s", TIMEOUT.as_secs());
    tokio::time::timeout(TIMEOUT, laid).await.map_err(|_| ServiceError::failed(slow))?
}

/// What of a specification is needed later on.
struct Blueprint {
    seccomp: Option<LinuxSeccomp>,
    namespaces: Vec<LinuxNamespaceType>,
    cgroup: PathBuf,
    has_poststart_hooks: bool,
}

impl Blueprint {
    fn of(id: &str, spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
        Self {
            seccomp: linux.and_then(|linux| linux.seccomp().clone()),
            namespaces: own_namespaces(spec),
            cgroup: container::cgroup_of(id, spec),
            has_poststart_hooks: hooks.is_some_and(|hooks| !hooks.is_empty()),
        }
    }
}

/// Lets an init that waits for it go on, as libcontainer's own start does.
fn notify_start(id: &str) -> Result<(), ServiceError> {
    let path = container::start_socket(id);
    let mut socket = UnixStream::connect(&path)
        .map_err(|error| ServiceError::failed(format!("starting container {id}: {error}")))?;
    socket.write_all(b"start container")?;
    // Nobody will connect again.
    drop(fs::remove_file(path));
    Ok(())
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }
}
