//! The mechanism behind the server, in memory.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{
    CgroupMetrics, ContainerConfig, ProcessEntry, ProcessParameters, Properties, PropertiesQuery,
    PropertyType, Resource, Verb,
};
use coracle_bridge::server::{
    Created, ExitFuture, GuestService, ServiceError, Started, Stop, Target,
};
use coracle_bridge::wire::Json;
use tokio::io::{AsyncRead, AsyncWrite, duplex, empty, sink};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::effects::Effects;
use super::workload::{NoProgram, Program, Setting};

/// What a pipe holds before its writer waits.
const PIPE: usize = 64 * 1024;

/// A guest of containers that are names and processes that are tasks.
#[derive(Debug)]
pub struct FakeGuest {
    effects: Effects,
    next_pid: AtomicU32,
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
struct World {
    containers: HashMap<String, Container>,
    processes: HashMap<u32, Process>,
    mounts: BTreeSet<String>,
}

#[derive(Debug)]
struct Container {
    init: u32,
    /// The init's program, until it is started.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    program: Program,
    handles: Handles,
}

#[derive(Debug)]
struct Process {
    container: Option<String>,
    signal: watch::Sender<u8>,
    size: watch::Sender<(u16, u16)>,
    terminal: bool,
}

/// The process's side of what [`Process`] holds.
#[derive(Debug)]
struct Handles {
    signal: watch::Receiver<u8>,
    size: watch::Receiver<(u16, u16)>,
    exit: watch::Sender<Option<u32>>,
}

impl FakeGuest {
    /// A guest that holds nothing.
    pub fn new(effects: Effects) -> Self {
        Self { effects, next_pid: AtomicU32::new(100), world: Arc::default() }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a process into the tables; it does not run yet.
    fn enter(&self, container: Option<&str>, terminal: bool) -> (u32, Handles, ExitFuture) {
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        let (signal, its_signal) = watch::channel(0);
        let (size, its_size) = watch::channel((80, 24));
        let (exit, exited) = watch::channel(None);
        let process = Process { container: container.map(str::to_owned), signal, size, terminal };
        self.world().processes.insert(pid, process);
        (pid, Handles { signal: its_signal, size: its_size, exit }, exit_of(exited))
    }

    /// Lets a process run, with the streams the host asked for.
    fn run(
        &self,
        pid: u32,
        program: Program,
        handles: Handles,
        parameters: &ProcessParameters,
        exit: ExitFuture,
    ) -> Started {
        let (stdin, its_stdin): (_, Box<dyn AsyncRead + Send + Unpin>) =
            match parameters.create_std_in_pipe.then(|| duplex(PIPE)) {
                Some((ours, its)) => (Some(Box::new(ours) as _), Box::new(its)),
                None => (None, Box::new(empty())),
            };
        let output = |wanted: bool| -> (Option<_>, Box<dyn AsyncWrite + Send + Unpin>) {
            match wanted.then(|| duplex(PIPE)) {
                Some((ours, its)) => (Some(Box::pin(ReaderStream::new(ours)) as _), Box::new(its)),
                None => (None, Box::new(sink())),
            }
        };
        let (stdout, its_stdout) = output(parameters.create_std_out_pipe);
        let (stderr, its_stderr) = output(parameters.create_std_err_pipe);
        let setting = Setting {
            stdin: its_stdin,
            stdout: its_stdout,
            stderr: its_stderr,
            signal: handles.signal,
            size: handles.size,
            mounts: self.world().mounts.iter().cloned().collect(),
        };
        let world = Arc::clone(&self.world);
        // Ends with its program; its streams end with it.
        tokio::spawn(async move {
            let code = program.run(setting).await;
            world.lock().unwrap_or_else(PoisonError::into_inner).processes.remove(&pid);
            handles.exit.send_replace(Some(code));
        });
        Started { pid, stdin, stdout, stderr, exit }
    }

    fn send(&self, pid: u32, signal: u8) -> Result<(), ServiceError> {
        let mut world = self.world();
        let process = world.processes.get(&pid).ok_or(Hresult::NOT_FOUND)?;
        process.signal.send_replace(signal);
        // An init that was never started has no task to end it.
        let waiting = world
            .containers
            .values_mut()
            .find(|container| container.init == pid)
            .and_then(|container| container.waiting.take());
        if let Some(waiting) = waiting {
            world.processes.remove(&pid);
            waiting.handles.exit.send_replace(Some(128 + u32::from(signal)));
        }
        Ok(())
    }
}

fn exit_of(mut exit: watch::Receiver<Option<u32>>) -> ExitFuture {
    Box::pin(async move {
        exit.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(255)
    })
}

fn program(arguments: &[String]) -> Result<Program, ServiceError> {
    Program::parse(arguments).map_err(|reason| {
        let name = arguments.first().map_or("", String::as_str);
        match reason {
            NoProgram::NotFound => ServiceError::new(
                Hresult::FILE_NOT_FOUND,
                format!("executable {name:?} not found in $PATH"),
            ),
            NoProgram::NotExecutable => ServiceError::new(
                Hresult::ACCESS_DENIED,
                format!("executable {name:?}: Permission denied"),
            ),
        }
    })
}

/// The program and whether it wants a terminal, from an OCI process.
fn oci_program(process: Option<&Json>) -> Result<(Program, bool), ServiceError> {
    let process = process.ok_or_else(|| ServiceError::invalid("there is no process"))?;
    let arguments: Vec<String> = process
        .get("args")
        .ok_or_else(|| ServiceError::invalid("the process has no arguments"))?
        .decode()
        .map_err(|error| ServiceError::invalid(format!("the arguments: {error}")))?;
    let terminal = matches!(process.get("terminal"), Some(Json::Bool(true)));
    Ok((program(&arguments)?, terminal))
}

#[async_trait]
impl GuestService for FakeGuest {
    async fn create_container(
        &self,
        id: &str,
        config: ContainerConfig,
    ) -> Result<Created, ServiceError> {
        self.effects.reach("create container")?;
        let spec = config.oci_specification.as_ref();
        let (program, terminal) = oci_program(spec.and_then(|spec| spec.get("process")))?;
        let (pid, handles, exit) = self.enter(Some(id), terminal);
        let container = Container { init: pid, waiting: Some(Waiting { program, handles }) };
        self.world().containers.insert(id.to_owned(), container);
        Ok(Created { pid, exit })
    }

    async fn start_init(
        &self,
        id: &str,
        parameters: ProcessParameters,
    ) -> Result<Started, ServiceError> {
        self.effects.reach("start init")?;
        let (pid, waiting) = {
            let mut world = self.world();
            let container = world.containers.get_mut(id).ok_or(Hresult::NO_SUCH_SYSTEM)?;
            (container.init, container.waiting.take().ok_or(Hresult::INVALID_STATE)?)
        };
        // The exit that counts is the one `create_container` gave.
        let exit = Box::pin(std::future::pending());
        Ok(self.run(pid, waiting.program, waiting.handles, &parameters, exit))
    }

    async fn exec(&self, id: &str, parameters: ProcessParameters) -> Result<Started, ServiceError> {
        self.effects.reach("exec")?;
        let (program, terminal) = oci_program(parameters.oci_process.as_ref())?;
        let (pid, handles, exit) = self.enter(Some(id), terminal);
        Ok(self.run(pid, program, handles, &parameters, exit))
    }

    async fn exec_in_vm(&self, parameters: ProcessParameters) -> Result<Started, ServiceError> {
        self.effects.reach("exec in the VM")?;
        let mut arguments = parameters.command_args.clone();
        if arguments.is_empty() {
            arguments =
                shell_words::split(&parameters.command_line).map_err(ServiceError::invalid)?;
        }
        let program = program(&arguments)?;
        let (pid, handles, exit) = self.enter(None, parameters.emulate_console);
        Ok(self.run(pid, program, handles, &parameters, exit))
    }

    async fn signal(&self, target: &Target, signal: i32) -> Result<(), ServiceError> {
        self.effects.reach("signal")?;
        let number = u8::try_from(signal).map_err(|_| Hresult::INVALID_ARGUMENT)?;
        self.send(target.pid, number)
    }

    async fn resize(&self, target: &Target, width: u16, height: u16) -> Result<(), ServiceError> {
        self.effects.reach("resize")?;
        let world = self.world();
        let process = world.processes.get(&target.pid).ok_or(Hresult::NOT_FOUND)?;
        if !process.terminal {
            let pid = target.pid;
            return Err(ServiceError::failed(format!("process {pid} has no terminal")));
        }
        process.size.send_replace((width, height));
        Ok(())
    }

    async fn shutdown_container(&self, id: &str, stop: Stop) -> Result<(), ServiceError> {
        self.effects.reach("shut a container down")?;
        let init = self.world().containers.get(id).ok_or(Hresult::NO_SUCH_SYSTEM)?.init;
        let signal = match stop {
            Stop::Graceful => 15,
            Stop::Forced => 9,
        };
        self.send(init, signal).map_err(|_| Hresult::ALREADY_STOPPED.into())
    }

    async fn delete_container(&self, id: &str) -> Result<(), ServiceError> {
        self.effects.reach("delete a container")?;
        let processes: Vec<u32> = {
            let world = self.world();
            world.containers.get(id).ok_or(Hresult::NO_SUCH_SYSTEM)?;
            let of_it = |process: &Process| process.container.as_deref() == Some(id);
            world
                .processes
                .iter()
                .filter(|(_, process)| of_it(process))
                .map(|(pid, _)| *pid)
                .collect()
        };
        for pid in processes {
            // It may have ended meanwhile.
            drop(self.send(pid, 9));
        }
        self.world().containers.remove(id);
        Ok(())
    }

    async fn properties(
        &self,
        id: &str,
        query: PropertiesQuery,
    ) -> Result<Properties, ServiceError> {
        let world = self.world();
        let mut properties = Properties::default();
        if query.property_types.contains(&PropertyType::PROCESS_LIST) {
            let of_it = |process: &Process| process.container.as_deref() == Some(id);
            let mut pids: Vec<u32> = world
                .processes
                .iter()
                .filter(|(_, process)| of_it(process))
                .map(|(pid, _)| *pid)
                .collect();
            pids.sort_unstable();
            properties.process_list =
                pids.into_iter().map(|process_id| ProcessEntry { process_id }).collect();
        }
        if query.property_types.contains(&PropertyType::STATISTICS) {
            properties.metrics = Some(CgroupMetrics::default());
        }
        Ok(properties)
    }

    async fn modify(&self, change: Change) -> Result<(), ServiceError> {
        self.effects.reach("modify")?;
        let path = match &change.resource {
            Resource::MappedVirtualDisk(disk) => &disk.mount_path,
            Resource::MappedDirectory(directory) => &directory.mount_path,
            Resource::VpmemDevice(device) => &device.mount_path,
            Resource::CombinedLayers(layers) => &layers.container_root_path,
            Resource::ContainerMount(mount) => &mount.destination,
            Resource::Pipe(pipe) => &pipe.path,
            other => {
                let kind = other.resource_type();
                return Err(ServiceError::not_implemented(format!("the fake guest has no {kind}")));
            }
        };
        let mut world = self.world();
        match change.verb {
            Verb::Add if path.is_empty() => Ok(()),
            Verb::Add if world.mounts.insert(path.clone()) => Ok(()),
            Verb::Add => Err(ServiceError::failed(format!("{path} is mounted already"))),
            Verb::Remove => {
                world.mounts.remove(path);
                Ok(())
            }
            Verb::PreAdd | Verb::Update => {
                Err(ServiceError::not_implemented("the fake guest adds and removes only"))
            }
        }
    }

    async fn modify_container(&self, id: &str, _: Change) -> Result<(), ServiceError> {
        self.effects.reach("modify a container")?;
        self.world().containers.get(id).map(drop).ok_or_else(|| Hresult::NO_SUCH_SYSTEM.into())
    }

    async fn dump_stacks(&self) -> Result<String, ServiceError> {
        let world = self.world();
        let mut pids: Vec<&u32> = world.processes.keys().collect();
        pids.sort_unstable();
        Ok(pids.into_iter().map(|pid| format!("process {pid}\n")).collect())
    }

    async fn power_off(&self, _: Stop) {}
}
