//! A guest without containers worth the name: each process is `cat`, ended by a signal or by the
//! end of its input, whose first byte is its exit code.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{
    Capabilities, ContainerConfig, ProcessParameters, Properties, PropertiesQuery,
};
use coracle_bridge::server::{Created, GuestService, ServiceError, Started, Stop, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio_util::io::ReaderStream;

/// What the guest was asked and holds.
#[derive(Default)]
pub struct Service {
    /// Changes of the VM, as they came.
    pub changes: Mutex<Vec<Change>>,
    /// Refuse changes.
    pub refuses_changes: AtomicBool,
    /// Refuse the so many-th change from now, and none after it; 0: none.
    pub refuses_change_in: AtomicU32,
    /// Say that network namespaces cannot be added.
    pub knows_no_networks: AtomicBool,
    /// Refuse containers.
    pub refuses_containers: AtomicBool,
    pids: AtomicU32,
    processes: Mutex<HashMap<u32, watch::Sender<Option<u32>>>>,
    containers: Mutex<HashMap<String, u32>>,
    off: Notify,
}

impl Service {
    pub async fn powered_off(&self) {
        self.off.notified().await;
    }

    /// A new process and its end.
    fn process(&self) -> (u32, watch::Sender<Option<u32>>) {
        let pid = self.pids.fetch_add(1, Ordering::Relaxed) + 100;
        let exit = watch::Sender::new(None);
        self.processes.lock().unwrap().insert(pid, exit.clone());
        (pid, exit)
    }

    fn end(&self, pid: u32, code: u32) -> Result<(), ServiceError> {
        let processes = self.processes.lock().unwrap();
        let exit = processes.get(&pid).ok_or(Hresult::NOT_FOUND)?;
        exit.send_replace(Some(code));
        Ok(())
    }

    fn cat(&self) -> Started {
        let (pid, exit) = self.process();
        let (host_in, mut guest_in) = tokio::io::duplex(4096);
        let (mut guest_out, host_out) = tokio::io::duplex(4096);
        let ended = exit.clone();
        tokio::spawn(async move {
            let (mut buffer, mut first) = ([0; 4096], None);
            while let Ok(count @ 1..) = guest_in.read(&mut buffer).await {
                first.get_or_insert(buffer[0]);
                if guest_out.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            drop(guest_out);
            ended.send_replace(Some(first.unwrap_or(0).into()));
        });
        Started {
            pid,
            stdin: Some(Box::new(host_in)),
            stdout: Some(Box::pin(ReaderStream::new(host_out))),
            stderr: None,
            exit: Box::pin(ended_with(exit)),
        }
    }
}

async fn ended_with(exit: watch::Sender<Option<u32>>) -> u32 {
    let mut exit = exit.subscribe();
    let code = exit.wait_for(Option::is_some).await;
    code.ok().and_then(|code| *code).unwrap_or(255)
}

#[async_trait]
impl GuestService for Service {
    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::linux();
        if let Some(can) = can.guest_defined_capabilities.as_mut() {
            can.namespace_add_request_supported = !self.knows_no_networks.load(Ordering::Relaxed);
        }
        can
    }

    async fn create_container(
        &self,
        id: &str,
        _config: ContainerConfig,
    ) -> Result<Created, ServiceError> {
        if self.refuses_containers.load(Ordering::Relaxed) {
            return Err(ServiceError::failed("no containers today"));
        }
        let (pid, exit) = self.process();
        self.containers.lock().unwrap().insert(id.to_owned(), pid);
        Ok(Created { pid, exit: Box::pin(ended_with(exit)) })
    }

    async fn start_init(&self, id: &str, _: ProcessParameters) -> Result<Started, ServiceError> {
        let pid = self.containers.lock().unwrap()[id];
        let exit = Box::pin(std::future::pending());
        Ok(Started { pid, stdin: None, stdout: None, stderr: None, exit })
    }

    async fn exec(&self, _id: &str, _: ProcessParameters) -> Result<Started, ServiceError> {
        Ok(self.cat())
    }

    async fn exec_in_vm(&self, _: ProcessParameters) -> Result<Started, ServiceError> {
        Ok(self.cat())
    }

    async fn signal(&self, target: &Target, signal: i32) -> Result<(), ServiceError> {
        self.end(target.pid, 128 + u32::try_from(signal).unwrap())
    }

    async fn resize(&self, _: &Target, _: u16, _: u16) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn shutdown_container(&self, id: &str, _: Stop) -> Result<(), ServiceError> {
        let pid = self.containers.lock().unwrap()[id];
        self.end(pid, 137)
    }

    async fn delete_container(&self, id: &str) -> Result<(), ServiceError> {
        self.containers.lock().unwrap().remove(id);
        Ok(())
    }

    async fn properties(&self, _: &str, _: PropertiesQuery) -> Result<Properties, ServiceError> {
        Ok(Properties::default())
    }

    async fn modify(&self, change: Change) -> Result<(), ServiceError> {
        if self.refuses_changes.load(Ordering::Relaxed) {
            return Err(ServiceError::failed("no changes today"));
        }
        let before = self.refuses_change_in.load(Ordering::Relaxed);
        self.refuses_change_in.store(before.saturating_sub(1), Ordering::Relaxed);
        if before == 1 {
            return Err(ServiceError::failed("not this change"));
        }
        self.changes.lock().unwrap().push(change);
        Ok(())
    }

    async fn modify_container(&self, _: &str, _: Change) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn dump_stacks(&self) -> Result<String, ServiceError> {
        Ok("a stack".to_owned())
    }

    async fn power_off(&self, _: Stop) {
        self.off.notify_one();
    }
}
