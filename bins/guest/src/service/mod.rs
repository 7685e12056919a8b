//! What the bridge asks of this VM.
//!
//! The server in the bridge crate keeps the protocol's tables; here is the mechanism. [`Agent`]
//! holds what mechanism needs to remember: of a container its confinement, so that a further
//! process gets the same, and of a process the handle that can be signalled and the terminal that
//! can be resized. Each kind of request has a file.

mod constraints;
mod containers;
mod errors;
mod modify;
mod network;
mod processes;
mod properties;
mod show;
mod started;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use coracle_bridge::channel::GuestChannel;
use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{ContainerConfig, ProcessParameters, Properties, PropertiesQuery};
use coracle_bridge::server::{Created, GuestService, ServiceError, Started, Stop, Target};

use crate::container::launch::Launcher;
use crate::network::Networks;
use crate::power;
use crate::process::terminal::Terminal;
use crate::reaper::{Child, Reaper};
use crate::stacks;
use crate::storage::mount::Mounter;
use crate::storage::pipe::Pipes;

use containers::Container;
use show::Shown;

/// The guest behind the bridge.
#[derive(Debug)]
pub struct Agent {
    launcher: Launcher,
    mounter: Arc<Mounter>,
    channel: GuestChannel,
    pipes: Pipes,
    networks: Arc<Mutex<Networks>>,
    /// What is shown in containers.
    shown: Mutex<Shown>,
    /// Held by whoever changes which devices a container may use.
    devices_turn: tokio::sync::Semaphore,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    processes: Arc<Mutex<HashMap<u32, Process>>>,
}

/// A live process.
#[derive(Debug, Clone)]
struct Process {
    child: Child,
    terminal: Option<Terminal>,
}

impl Agent {
    /// An agent with no containers.
    pub fn new(launcher: Launcher, mounter: Arc<Mounter>, channel: GuestChannel) -> Self {
        Self {
            launcher,
            mounter,
            channel,
            pipes: Pipes::default(),
            networks: Arc::default(),
            shown: Mutex::default(),
            devices_turn: tokio::sync::Semaphore::new(1),
            containers: Mutex::default(),
            processes: Arc::default(),
        }
    }

    fn reaper(&self) -> &Reaper {
        self.launcher.reaper()
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl GuestService for Agent {
    async fn create_container(
        &self,
        id: &str,
        config: ContainerConfig,
    ) -> Result<Created, ServiceError> {
        self.create(id, &config).await
    }

    async fn start_init(
        &self,
        id: &str,
        parameters: ProcessParameters,
    ) -> Result<Started, ServiceError> {
        self.start(id, &parameters).await
    }

    async fn exec(&self, id: &str, parameters: ProcessParameters) -> Result<Started, ServiceError> {
        self.exec_in_container(id, &parameters).await
    }

    async fn exec_in_vm(&self, parameters: ProcessParameters) -> Result<Started, ServiceError> {
        self.exec_external(&parameters)
    }

    async fn signal(&self, target: &Target, signal: i32) -> Result<(), ServiceError> {
        self.signal_process(target.pid, signal)
    }

    async fn resize(&self, target: &Target, width: u16, height: u16) -> Result<(), ServiceError> {
        self.resize_process(target.pid, width, height)
    }

    async fn shutdown_container(&self, id: &str, stop: Stop) -> Result<(), ServiceError> {
        self.stop_container(id, stop)
    }

    async fn delete_container(&self, id: &str) -> Result<(), ServiceError> {
        self.delete(id).await
    }

    async fn properties(
        &self,
        id: &str,
        query: PropertiesQuery,
    ) -> Result<Properties, ServiceError> {
        properties::of(&*self.container(id)?, &query)
    }

    async fn modify(&self, change: Change) -> Result<(), ServiceError> {
        self.modify_vm(change).await
    }

    async fn modify_container(&self, id: &str, change: Change) -> Result<(), ServiceError> {
        constraints::apply(&*self.container(id)?, change)
    }

    async fn dump_stacks(&self) -> Result<String, ServiceError> {
        Ok(stacks::dump())
    }

    async fn power_off(&self, stop: Stop) {
        match stop {
            Stop::Graceful => power::off_gracefully().await,
            Stop::Forced => power::off_now(),
        }
    }
}
