//! The two traits. They are object safe so that a sandbox holds `Arc<dyn Vmm>` and neither knows
//! nor cares what runs its machine.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    Device, DeviceId, ExitReason, MiB, PciAddress, VmConfig, VmEvent, VmIdentity, VmStats,
    VmStatus, VmmError,
};

/// A virtual machine monitor: something that can start a VM, or find a running one again.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Starts a VM and returns once its control socket answers.
    ///
    /// With [`VmConfig::paused`] no instruction of the guest has run yet: [`Vm::resume`] starts
    /// it. On error nothing is left behind: no process, no socket, no cgroup.
    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmmError>;

    /// Takes over a VM that runs already and whose former owner is gone.
    ///
    /// The process is checked by id, start time and UUID, so a recycled process id is never
    /// mistaken for the VM.
    ///
    /// # Errors
    /// [`VmmError::Gone`] when that VM has ended, [`VmmError::NotThatVm`] when something else
    /// answers, [`VmmError::Busy`] when another owner still holds the control socket.
    async fn adopt(&self, identity: &VmIdentity) -> Result<Box<dyn Vm>, VmmError>;
}

/// One VM.
///
/// Dropping the last handle of a VM that dies with its owner ([`VmConfig::die_with_owner`]) kills
/// it; any other VM runs on and can be adopted.
#[async_trait]
pub trait Vm: Send + Sync {
    /// What to remember in order to adopt this VM later.
    fn identity(&self) -> &VmIdentity;

    /// Starts, or goes on running, the virtual CPUs. Resuming a running VM changes nothing.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Stops the virtual CPUs; devices and memory stay. Pausing a paused VM changes nothing.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Whether the VM runs, as the monitor itself says.
    async fn status(&self) -> Result<VmStatus, VmmError>;

    /// Plugs a device in while the VM lives. Undone completely on failure.
    async fn plug(&self, device: Device) -> Result<DeviceId, VmmError>;

    /// Unplugs a device: asks the guest to let it go, waits at most `timeout` for that, then
    /// takes away what stood behind it on the host.
    ///
    /// After [`VmmError::UnplugTimeout`] the request still stands; unplugging again waits on.
    async fn unplug(&self, id: &DeviceId, timeout: Duration) -> Result<(), VmmError>;

    /// Sees to it that the VM has at least so many virtual processors. The guest has yet to use new
    /// ones, and none is ever taken away.
    ///
    /// # Errors
    /// [`VmmError::TooManyCpus`] beyond [`VmConfig::max_vcpus`], which an emulated VM takes for two at least.
    async fn add_vcpus(&self, wanted: u32) -> Result<(), VmmError>;

    /// Gives the VM so much memory beyond what it was made with, or takes it back, and waits at most
    /// `limit` for the guest to follow.
    ///
    /// # Errors
    /// [`VmmError::MemoryTimeout`]: the guest goes on following, as far as it can.
    async fn set_extra_memory(&self, wanted: MiB, limit: Duration) -> Result<(), VmmError>;

    /// Where a pmem device begins in the guest's memory, in bytes: the guest knows it by that.
    async fn pmem_address(&self, id: &DeviceId) -> Result<u64, VmmError>;

    /// Where the guest sees a PCI device that was plugged in. The guest numbers the buses behind its
    /// bridges, so the answer is good once it has booted.
    async fn pci_address(&self, id: &DeviceId) -> Result<PciAddress, VmmError>;

    /// What happens to the VM from now on. A slow receiver misses the oldest events.
    fn events(&self) -> broadcast::Receiver<VmEvent>;

    /// Ends the VM at once and waits until its process is gone. Killing a dead VM succeeds.
    async fn kill(&self) -> Result<(), VmmError>;

    /// Waits until the VM has ended and says why; any number of callers, at any time.
    async fn wait(&self) -> ExitReason;

    /// The last lines the guest wrote on its console; empty when it wrote none.
    async fn console_tail(&self) -> String;

    /// What the VM costs the host, seen from outside.
    async fn stats(&self) -> Result<VmStats, VmmError>;
}
