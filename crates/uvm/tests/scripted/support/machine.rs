//! The scripted monitor and its machine.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coracle_bridge::channel::{GuestChannel, SocketPort};
use coracle_vmm::{
    Device, DeviceId, ExitReason, MiB, PciAddress, Vm, VmConfig, VmEvent, VmIdentity, VmStats,
    VmStatus, Vmm, VmmError,
};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::guest::{self, Guest};

/// What a machine was asked, in order.
pub type Log = Arc<Mutex<Vec<&'static str>>>;

/// Effects that fail.
type Fails = Arc<Mutex<Vec<&'static str>>>;

/// The effect that fails once, and in how many.
type FailsAt = Arc<Mutex<Option<(&'static str, u32)>>>;

/// Makes one machine after the other, all with the same guest.
pub struct ScriptedVmm {
    guest: Guest,
    pub log: Log,
    fails: Fails,
    fails_at: FailsAt,
    pub config: Mutex<Option<Launched>>,
    state: Mutex<Option<watch::Sender<Option<ExitReason>>>>,
}

/// What of the configuration tests look at.
#[derive(Debug, Clone)]
pub struct Launched {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub serials: Vec<String>,
}

impl ScriptedVmm {
    pub fn new(guest: Guest) -> Self {
        Self {
            guest,
            log: Log::default(),
            fails: Fails::default(),
            fails_at: FailsAt::default(),
            config: Mutex::default(),
            state: Mutex::default(),
        }
    }

    pub fn fail(&self, effect: &'static str) {
        self.fails.lock().unwrap().push(effect);
    }

    /// The so many-th one from now fails, and none after it.
    pub fn fail_at(&self, effect: &'static str, count: u32) {
        *self.fails_at.lock().unwrap() = Some((effect, count));
    }

    pub fn mend(&self, effect: &'static str) {
        self.fails.lock().unwrap().retain(|fails| *fails != effect);
    }

    /// The machine ends by itself.
    pub fn end(&self, reason: ExitReason) {
        let state = self.state.lock().unwrap();
        state.as_ref().unwrap().send_if_modified(|exit| exit.replace(reason).is_none());
    }

    pub fn is_alive(&self) -> bool {
        self.state.lock().unwrap().as_ref().is_some_and(|state| state.borrow().is_none())
    }

    pub fn log(&self) -> Vec<&'static str> {
        self.log.lock().unwrap().clone()
    }

    pub fn launched(&self) -> Launched {
        self.config.lock().unwrap().clone().unwrap()
    }
}

#[async_trait]
impl Vmm for ScriptedVmm {
    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmmError> {
        self.log.lock().unwrap().push("launch");
        if self.fails.lock().unwrap().contains(&"launch") {
            return Err(VmmError::Injected { name: "launch" });
        }
        if self.fails.lock().unwrap().contains(&"launch in time") {
            std::future::pending::<()>().await;
        }
        assert!(config.paused, "the processors stand still until start");
        *self.config.lock().unwrap() = Some(Launched {
            vcpus: config.vcpus,
            memory_mib: config.memory.size.0,
            serials: config.disks.iter().map(|disk| disk.serial.clone()).collect(),
        });
        let taken = |source| VmmError::Host {
            operation: "listen on",
            object: "a serial port".to_owned(),
            source,
        };
        let ports = config.serial_ports.iter().map(|port| {
            let listener = UnixListener::bind(&port.socket).map_err(taken)?;
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            Ok(Box::new(SocketPort::new(listener).unwrap()))
        });
        let ports = ports.collect::<Result<Vec<_>, VmmError>>()?;
        let [control, streams] = ports.try_into().ok().unwrap();
        let state = watch::Sender::new(None);
        *self.state.lock().unwrap() = Some(state.clone());
        Ok(Box::new(Machine {
            identity: identity(&config),
            channel: Mutex::new(Some(GuestChannel::open(control, streams))),
            guest: self.guest.clone(),
            task: Mutex::default(),
            fails: self.fails.clone(),
            fails_at: self.fails_at.clone(),
            log: self.log.clone(),
            exit: state,
        }))
    }

    async fn adopt(&self, _identity: &VmIdentity) -> Result<Box<dyn Vm>, VmmError> {
        Err(VmmError::Gone)
    }
}

fn identity(config: &VmConfig) -> VmIdentity {
    VmIdentity {
        id: config.id,
        pid: 1,
        start_time: 0,
        boot_id: String::new(),
        control_socket: config.run_dir.join("qmp.sock"),
        cgroup: None,
        die_with_owner: config.die_with_owner,
        sockets: Vec::new(),
        console: None,
        graphics: None,
    }
}

/// A machine whose processor is a script.
struct Machine {
    identity: VmIdentity,
    channel: Mutex<Option<GuestChannel>>,
    guest: Guest,
    task: Mutex<Option<JoinHandle<()>>>,
    fails: Fails,
    fails_at: FailsAt,
    log: Log,
    exit: watch::Sender<Option<ExitReason>>,
}

impl Machine {
    fn effect(&self, name: &'static str) -> Result<(), VmmError> {
        self.log.lock().unwrap().push(name);
        let mut due = self.fails_at.lock().unwrap();
        if let Some((_, count)) = due.as_mut().filter(|(effect, _)| *effect == name) {
            *count -= 1;
            if *count == 0 {
                *due = None;
                return Err(VmmError::Injected { name });
            }
        }
        if self.fails.lock().unwrap().contains(&name) {
            Err(VmmError::Injected { name })
        } else {
            Ok(())
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.identity.die_with_owner {
            self.exit.send_if_modified(|exit| {
                exit.get_or_insert(ExitReason::Killed) == &ExitReason::Killed
            });
        }
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
    }
}

#[async_trait]
impl Vm for Machine {
    fn identity(&self) -> &VmIdentity {
        &self.identity
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.effect("resume")?;
        let Some(channel) = self.channel.lock().unwrap().take() else { return Ok(()) };
        let (guest, exit) = (self.guest.clone(), self.exit.clone());
        *self.task.lock().unwrap() = Some(tokio::spawn(async move {
            let mut ended = exit.subscribe();
            // The guest dies with its machine: its channel is torn, its tasks are gone.
            tokio::select! {
                reason = guest::run(guest, channel) => {
                    exit.send_if_modified(|exit| exit.is_none() && { *exit = Some(reason); true });
                }
                _ = ended.wait_for(Option::is_some) => {}
            }
        }));
        Ok(())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.effect("pause")
    }

    async fn status(&self) -> Result<VmStatus, VmmError> {
        Ok(VmStatus::Running)
    }

    async fn plug(&self, device: Device) -> Result<DeviceId, VmmError> {
        if self.fails.lock().unwrap().contains(&"slowly") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.effect("plug")?;
        Ok(device.id().clone())
    }

    async fn unplug(&self, _id: &DeviceId, _timeout: Duration) -> Result<(), VmmError> {
        self.effect("unplug")
    }

    async fn add_vcpus(&self, _wanted: u32) -> Result<(), VmmError> {
        self.effect("add_vcpus")
    }

    async fn set_extra_memory(&self, _wanted: MiB, _limit: Duration) -> Result<(), VmmError> {
        self.effect("set_extra_memory")
    }

    async fn pmem_address(&self, _id: &DeviceId) -> Result<u64, VmmError> {
        Ok(1 << 32)
    }

    async fn pci_address(&self, _id: &DeviceId) -> Result<PciAddress, VmmError> {
        self.effect("pci_address")?;
        Ok(PciAddress { domain: 0, bus: 1, slot: 2, function: 0 })
    }

    fn events(&self) -> broadcast::Receiver<VmEvent> {
        broadcast::channel(1).1
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.effect("kill")?;
        self.exit.send_if_modified(|exit| {
            exit.is_none() && {
                *exit = Some(ExitReason::Killed);
                true
            }
        });
        self.channel.lock().unwrap().take();
        Ok(())
    }

    async fn wait(&self) -> ExitReason {
        let mut exit = self.exit.subscribe();
        let reason = exit.wait_for(Option::is_some).await.unwrap().clone();
        reason.unwrap()
    }

    async fn console_tail(&self) -> String {
        String::new()
    }

    async fn stats(&self) -> Result<VmStats, VmmError> {
        self.effect("stats")?;
        Ok(VmStats {
            resident_bytes: 7 << 20,
            cpu_time: Duration::from_millis(3),
            uptime: Duration::from_secs(1),
        })
    }
}
