//! What a VM asks of the agent in it.

use coracle_bridge::client::{BridgeError, ConnectOptions, Container, GuestConnection, Process};
use coracle_bridge::message::{ContainerConfig, GuestDefinedCapabilities, ProcessParameters};
use tokio::net::UnixStream;

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm};
use crate::state::State;

impl UtilityVm {
    /// Makes a container in the VM. Its id may be used again once it has exited, or if this
    /// fails.
    ///
    /// # Errors
    /// The VM does not run or has no guest connection; the guest refuses.
    #[doc(alias = "CreateContainer")]
    pub async fn create_container(
        &self,
        id: &str,
        settings: &ContainerConfig,
    ) -> Result<Container> {
        let guest = self.machine.running_guest("create a container")?;
        guest
            .create_container(id, settings)
            .await
            .map_err(|source| UvmError::CreateContainer { container: id.to_owned(), source })
    }

    /// Runs a process in the VM itself, outside of all containers.
    ///
    /// # Errors
    /// As [`UtilityVm::create_container`].
    #[doc(alias = "CreateProcess")]
    pub async fn create_process(&self, settings: &ProcessParameters) -> Result<Process> {
        const OPERATION: &str = "create a process";
        let guest = self.machine.running_guest(OPERATION)?;
        let created = guest.create_process(settings).await;
        created.map_err(|source| self.machine.guest_failed(OPERATION, source))
    }

    /// The protocol's version and what the guest can do; zero before the start.
    #[doc(alias = "Capabilities")]
    pub fn capabilities(&self) -> (u32, GuestDefinedCapabilities) {
        self.machine.capabilities.get().copied().unwrap_or_default()
    }

    /// Whether the guest can signal a process with a signal of our choice.
    #[doc(alias = "SignalProcessSupported")]
    pub fn signal_process_supported(&self) -> bool {
        self.capabilities().1.signal_process_supported
    }

    /// Whether the guest can forget a container.
    #[doc(alias = "DeleteContainerStateSupported")]
    pub fn delete_container_state_supported(&self) -> bool {
        self.machine.guest().is_some() && self.capabilities().1.delete_container_state_supported
    }

    /// The stacks of the agent's tasks, as text. Empty, and no error, without a guest connection
    /// or with an agent that cannot.
    ///
    /// # Errors
    /// The request fails.
    #[doc(alias = "DumpStacks")]
    pub async fn dump_stacks(&self) -> Result<String> {
        let Some(guest) = self.machine.guest() else { return Ok(String::new()) };
        if !self.capabilities().1.dump_stacks_supported {
            return Ok(String::new());
        }
        guest
            .dump_stacks()
            .await
            .map_err(|source| self.machine.guest_failed("dump the stacks", source))
    }

    /// Makes the guest forget a container that has exited.
    ///
    /// # Errors
    /// The guest cannot do that, or knows no such container: so a second call is an error.
    #[doc(alias = "DeleteContainerState")]
    pub async fn delete_container_state(&self, container: &str) -> Result<()> {
        if !self.delete_container_state_supported() {
            return Err(UvmError::DeleteContainerStateUnsupported);
        }
        let operation = "delete a container's state";
        let guest = self.machine.running_guest(operation)?;
        let deleted = guest.delete_container_state(&container.into()).await;
        deleted.map_err(|source| self.machine.guest_failed(operation, source))
    }
}

impl Machine {
    /// The guest connection of a VM that runs.
    pub(crate) fn running_guest(&self, operation: &'static str) -> Result<GuestConnection> {
        let (id, state) = (self.id.clone(), self.life.state());
        if state != State::Running {
            return Err(UvmError::NotRunning { operation, id, state });
        }
        self.guest().ok_or(UvmError::NoGuestConnection { operation, id })
    }

    /// Whether something can be plugged in: the VM is there and not over. The guest's half of it
    /// needs [`State::Running`] and fails by itself before.
    pub(crate) fn may_plug(&self, operation: &'static str) -> Result<()> {
        let (id, state) = (self.id.clone(), self.life.state());
        if state.is_over() {
            return Err(UvmError::NotRunning { operation, id, state });
        }
        Ok(())
    }

    pub(crate) fn guest_failed(&self, operation: &'static str, source: BridgeError) -> UvmError {
        UvmError::Guest { operation, id: self.id.clone(), source }
    }
}

/// Agrees on a version with the agent that dialled.
pub(crate) async fn connect(
    machine: &Machine,
    stream: UnixStream,
) -> Result<GuestConnection, BridgeError> {
    GuestConnection::connect(stream, ConnectOptions::new(machine.channel.clone())).await
}
