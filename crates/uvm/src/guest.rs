//! What a VM asks of the agent in it.

use coracle_bridge::client::{
    BridgeError, ConnectOptions, Container, GuestConnection, Process, StdioResume,
};
use coracle_bridge::message::{
    ContainerConfig, GuestDefinedCapabilities, ProcessParameters, State as GuestState,
};
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

    /// Goes on with a container that an earlier owner of the VM made.
    ///
    /// # Errors
    /// The guest holds none of this id; as [`UtilityVm::create_container`].
    pub async fn resume_container(&self, id: &str) -> Result<Container> {
        const OPERATION: &str = "resume a container";
        let guest = self.machine.running_guest(OPERATION)?;
        let resumed = guest.resume_container(id).await;
        resumed.map_err(|source| self.machine.guest_failed(OPERATION, source))
    }

    /// Goes on with a process that an earlier owner of the VM started, its streams at the offsets in
    /// `stdio`. The null id stands for the VM itself.
    ///
    /// # Errors
    /// The guest holds no such process, or an offset was never written.
    pub async fn resume_process(
        &self,
        container: &str,
        pid: u32,
        stdio: StdioResume,
    ) -> Result<Process> {
        const OPERATION: &str = "resume a process";
        let guest = self.machine.running_guest(OPERATION)?;
        let resumed = guest.resume_process(&container.into(), pid, stdio).await;
        resumed.map_err(|source| self.machine.guest_failed(OPERATION, source))
    }

    /// What the guest holds: containers, processes and how far their streams are.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn guest_state(&self) -> Result<GuestState> {
        const OPERATION: &str = "list what the guest holds";
        let guest = self.machine.running_guest(OPERATION)?;
        let listed = guest.list_state().await;
        listed.map_err(|source| self.machine.guest_failed(OPERATION, source))
    }

    /// Until the connection to the guest is lost; at once if there is none. The VM may go on.
    pub async fn guest_lost(&self) {
        if let Some(guest) = self.machine.guest() {
            guest.closed().await;
        }
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
