//! A command in a container.

use std::time::Duration;

use coracle_uvm::container::{
    self, BridgeError, Container, ContainerConfig, Hresult, ProcessParameters, StdioResume,
};
use coracle_uvm::{UtilityVm, UvmError};
use oci_spec::runtime::Spec;
use tokio::time::sleep;

pub use coracle_uvm::container::{StdinWriter as Input, StdoutReader as Output};

use crate::error::Error;
use crate::spec::Command;

/// How long a VM whose bridge broke may take to be seen dead.
const EXIT_AFTER_BRIDGE: Duration = Duration::from_secs(2);

/// The same where the channel is gone with who carried it, which explains the bridge's end as well.
const EXIT_AFTER_CHANNEL: Duration = Duration::from_millis(300);

/// How often who carries the channel is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// A command that runs in a container: its init process, or another.
#[derive(Debug)]
pub struct Process {
    name: String,
    vm: UtilityVm,
    process: container::Process,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

/// Makes the container; its init process waits to be started.
pub(crate) async fn create(
    vm: &UtilityVm,
    name: &str,
    bundle: &str,
    spec: &Spec,
    program: &str,
) -> Result<Container, Error> {
    let config = ContainerConfig::new(bundle, spec)
        .expect("the maps of an OCI specification have texts as keys");
    let created = vm.create_container(name, &config).await;
    created.map_err(|source| create_error(name, program, source))
}

/// Starts the container's init process.
pub(crate) async fn start(
    vm: &UtilityVm,
    name: &str,
    container: &Container,
    program: &str,
    command: &Command,
) -> Result<Process, Error> {
    let started = container.create_process(&streams_of(command)).await;
    let process = started.map_err(|source| start_error(program, source))?;
    Ok(Process::new(vm, name, process))
}

/// Starts another process in a container that runs.
pub(crate) async fn exec(
    vm: &UtilityVm,
    name: &str,
    container: &Container,
    process: &oci_spec::runtime::Process,
    user: &str,
    command: &Command,
) -> Result<Process, Error> {
    let program = command.args.first().map_or("", String::as_str);
    let parameters = ProcessParameters { user: user.to_owned(), ..streams_of(command) };
    let document = parameters
        .with_oci_process(process)
        .expect("the maps of an OCI process have texts as keys");
    let started = container.create_process(&document).await;
    let process = started.map_err(|source| start_error(program, source))?;
    Ok(Process::new(vm, name, process))
}

/// Goes on with a process that an earlier owner of the VM started; its output from these offsets on,
/// if it is wanted.
pub(crate) async fn resume(
    vm: &UtilityVm,
    name: &str,
    container: &str,
    pid: u32,
    stdio: StdioResume,
) -> Result<Process, Error> {
    let resumed = vm.resume_process(container, pid, stdio).await;
    let process = resumed.map_err(|source| Error::Vm {
        name: name.to_owned(),
        what: "resume a process of",
        source: Box::new(source),
    })?;
    Ok(Process::new(vm, name, process))
}

/// Which streams the host wants.
fn streams_of(command: &Command) -> ProcessParameters {
    ProcessParameters {
        create_std_in_pipe: command.stdin,
        create_std_out_pipe: true,
        create_std_err_pipe: command.terminal.is_none(),
        emulate_console: command.terminal.is_some(),
        console_size: command.terminal.flatten().map(|(width, height)| (height, width)),
        ..ProcessParameters::default()
    }
}

impl Process {
    fn new(vm: &UtilityVm, name: &str, process: container::Process) -> Self {
        let stdio = process.take_stdio();
        Self {
            name: name.to_owned(),
            vm: vm.clone(),
            process,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
        }
    }

    /// Its number in the guest.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The command's standard input, once.
    pub fn take_stdin(&mut self) -> Option<Input> {
        self.stdin.take()
    }

    /// The command's standard output (or terminal), once.
    pub fn take_stdout(&mut self) -> Option<Output> {
        self.stdout.take()
    }

    /// The command's standard error, once; none with a terminal.
    pub fn take_stderr(&mut self) -> Option<Output> {
        self.stderr.take()
    }

    /// Waits for the command's exit code. Cancel safe; can be asked again.
    ///
    /// # Errors
    /// The VM was lost first.
    pub async fn wait(&self) -> Result<u32, Error> {
        match self.process.wait().await {
            Ok(code) => Ok(code),
            Err(bridge) => Err(self.lost(bridge).await),
        }
    }

    /// Says why the command was lost: if the VM ended, that is the cause and the bridge's end
    /// only its first sign.
    async fn lost(&self, bridge: BridgeError) -> Error {
        let name = self.name.clone();
        match (self.has_vm_ended().await, self.vm.exit_error()) {
            (true, Err(exit)) => Error::Lost { name, source: Box::new(exit) },
            (true, Ok(())) | (false, _) => Error::Lost { name, source: Box::new(bridge) },
        }
    }

    /// Whether the VM ends, now that its bridge broke.
    async fn has_vm_ended(&self) -> bool {
        let channel_gone = async {
            while !self.vm.is_channel_gone() {
                sleep(LOOK).await;
            }
            sleep(EXIT_AFTER_CHANNEL).await;
        };
        tokio::select! {
            () = self.vm.wait() => true,
            () = channel_gone => false,
            () = sleep(EXIT_AFTER_BRIDGE) => false,
        }
    }

    /// Says that how it ended is written down, so that the guest may forget it, and what nobody reads
    /// of its streams.
    pub async fn forget(&self) {
        if let Err(error) = self.process.close().await {
            tracing::debug!(%error, "the guest does not forget a process");
        }
    }

    /// Whether the connection to it is lost, while its VM goes on.
    pub async fn is_cut_off(&self) -> bool {
        !self.has_vm_ended().await
    }

    /// Sends a signal by number. One that comes too late is no error.
    ///
    /// # Errors
    /// The guest refuses, or is gone.
    pub async fn signal(&self, number: i32) -> Result<(), Error> {
        self.control("signal", self.process.signal(Some(number)).await.map(drop))
    }

    /// Kills the command at once.
    ///
    /// # Errors
    /// The guest refuses, or is gone.
    pub async fn kill(&self) -> Result<(), Error> {
        self.control("kill", self.process.kill().await.map(drop))
    }

    /// Sets the terminal's size, in characters.
    ///
    /// # Errors
    /// There is no terminal, or the guest is gone.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        self.control("resize", self.process.resize(width, height).await)
    }

    fn control(&self, what: &'static str, result: Result<(), BridgeError>) -> Result<(), Error> {
        let name = self.name.clone();
        result.map_err(|source| Error::Control { name, what, source })
    }
}

/// Says whether the command is to blame for a container that could not be made, or we: the
/// guest looks for the program when it makes the container.
fn create_error(name: &str, program: &str, source: UvmError) -> Error {
    match blame(source.guest_result(), program) {
        Some(blamed) => blamed(Box::new(source)),
        None => Error::Create { name: name.to_owned(), source: Box::new(source) },
    }
}

fn start_error(program: &str, source: BridgeError) -> Error {
    match blame(source.hresult(), program) {
        Some(blamed) => blamed(Box::new(source)),
        None => Error::Start { command: program.to_owned(), source },
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The error that blames the command, if the guest's result does.
fn blame(result: Option<Hresult>, program: &str) -> Option<impl FnOnce(Cause) -> Error> {
    let command = program.to_owned();
    let is_missing = match result? {
        Hresult::FILE_NOT_FOUND => true,
        Hresult::ACCESS_DENIED => false,
        _ => return None,
    };
    Some(move |source| {
        if is_missing {
            Error::CommandNotFound { command, source }
        } else {
            Error::CommandNotExecutable { command, source }
        }
    })
}
