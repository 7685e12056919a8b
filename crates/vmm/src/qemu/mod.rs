//! QEMU as the monitor.
//!
//! A launch opens and binds everything as ourselves, writes the command line, and spawns QEMU as
//! a user of its own without any right but to what it was handed:
//!
//! ```text
//! VmConfig --launch--> descriptors --command_line--> words --launcher--> process --qmp--> Vm
//! ```

mod boot_file;
mod check;
mod command_line;
pub(crate) mod device;
mod firmware;
mod kernel_arguments;
mod launch;
mod shared_memory;

use std::path::PathBuf;

use async_trait::async_trait;
pub use kernel_arguments::{KernelFacts, host_tsc_khz, kernel_arguments};

use crate::{
    Vm, VmConfig, VmIdentity, Vmm, VmmError,
    effect::Effects,
    machine::{self},
};

/// The monitor QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    verdicts: Option<PathBuf>,
    effects: Effects,
    /// The program is the fake: it runs no kernel and no guest code.
    has_machine: bool,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemu {
    /// `qemu-system-x86_64` as found in `PATH`.
    pub fn new() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            verdicts: None,
            effects: Effects::default(),
            has_machine: true,
        }
    }

    /// Another program; a bare name is looked for in `PATH`.
    #[must_use]
    pub fn with_program(self, program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), ..self }
    }

    /// Remembers the trial of KVM in this directory (see [`crate::accel::choose`]).
    #[must_use]
    pub fn with_verdicts(self, directory: impl Into<PathBuf>) -> Self {
        Self { verdicts: Some(directory.into()), ..self }
    }

    /// The program has QEMU's command line and no machine behind it.
    pub(crate) fn without_machine(self) -> Self {
        Self { has_machine: false, ..self }
    }

    /// Interrupts effects, for tests.
    #[must_use]
    pub fn with_effects(self, effects: Effects) -> Self {
        Self { effects, ..self }
    }
}

#[async_trait]
impl Vmm for Qemu {
    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmmError> {
        Ok(Box::new(launch::launch(self, config).await?))
    }

    async fn adopt(&self, identity: &VmIdentity) -> Result<Box<dyn Vm>, VmmError> {
        Ok(Box::new(machine::adopt(identity, self.effects.clone()).await?))
    }
}
