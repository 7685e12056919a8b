//! A monitor without a machine.
//!
//! The fake is a program that takes QEMU's command line and speaks QEMU's control protocol, as far
//! as we use either. So everything on our side of the socket is the code that runs in
//! production: launch, client, hot-plug, adoption, supervision. What the fake has not is a guest;
//! in its place it runs a program that plays one on the serial ports, begun when the virtual CPUs
//! would begin. It decides nothing by time or chance, answers with QEMU's own words, and fails or
//! dies at whichever effect a test chooses.

mod command_line;
mod connection;
mod guest;
mod model;
mod server;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use async_trait::async_trait;

use crate::{
    Vm, VmConfig, VmIdentity, Vmm, VmmError,
    effect::{Effects, Interruption},
    qemu::Qemu,
};

/// The monitor that has no machine.
#[derive(Debug, Clone)]
pub struct FakeVmm {
    qemu: Qemu,
    arguments: Vec<String>,
}

impl FakeVmm {
    /// A fake which is this program, built from `src/bin/coracle-fake-vm.rs`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { qemu: Qemu::new().with_program(program).without_machine(), arguments: Vec::new() }
    }

    /// Runs this program as the guest, once the VM runs. For every serial port it gets an option
    /// named as the last part of the port's name, and a socket to listen on: `--control PATH` for
    /// a port `coracle.control`. When it ends with status 0 the guest has shut down, with any
    /// other it has panicked. What it prints is the console.
    #[must_use]
    pub fn with_guest(self, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        let program: PathBuf = program.into();
        let mut words = vec![program.display().to_string()];
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        let words = serde_json::Value::from(words).to_string();
        self.with_argument("-fake-guest", words)
    }

    /// Interrupts the `at`-th effect inside the monitor, counted from 1: it refuses the command,
    /// or dies by SIGKILL in the middle of it.
    #[must_use]
    pub fn interrupt(self, at: u64, how: Interruption) -> Self {
        let how = match how {
            Interruption::Fail => "fail",
            Interruption::Die => "die",
        };
        self.with_argument("-fake-interrupt", format!("{at}:{how}"))
    }

    /// Breaks the control connection, once, after this many commands.
    #[must_use]
    pub fn hang_up_after(self, commands: u64) -> Self {
        self.with_argument("-fake-hang-up", commands.to_string())
    }

    /// Interrupts effects on our side of the control socket.
    #[must_use]
    pub fn with_effects(self, effects: Effects) -> Self {
        Self { qemu: self.qemu.with_effects(effects), ..self }
    }

    fn with_argument(mut self, option: &str, value: String) -> Self {
        self.arguments.extend([option.to_owned(), value]);
        self
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn launch(&self, mut config: VmConfig) -> Result<Box<dyn Vm>, VmmError> {
        config.extra_arguments.extend(self.arguments.iter().cloned());
        self.qemu.launch(config).await
    }

    async fn adopt(&self, identity: &VmIdentity) -> Result<Box<dyn Vm>, VmmError> {
        self.qemu.adopt(identity).await
    }
}

/// The fake's main program: QEMU's command line without the program's name.
pub fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let outcome = command_line::parse(arguments).and_then(|setup| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(server::serve(setup)).map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-fake-vm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The words of a guest program.
type Program = Vec<OsString>;
