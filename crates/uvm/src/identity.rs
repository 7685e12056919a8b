//! Who a VM is, and the numbers its callers make names of.

use coracle_vmm::VmIdentity;

use crate::lifecycle::UtilityVm;
use crate::timeline::Timeline;

impl UtilityVm {
    /// The VM's id: the one of its options, or the UUID that was made for it.
    #[doc(alias = "ID")]
    pub fn id(&self) -> &str {
        &self.machine.id
    }

    /// Who the VM belongs to.
    pub fn owner(&self) -> &str {
        &self.machine.owner
    }

    /// The guest's operating system; VMs with `windows` need a Windows host.
    #[doc(alias = "OS")]
    pub fn os(&self) -> &'static str {
        "linux"
    }

    /// Always false: what runs in the VM itself is described by process parameters, not by an OCI
    /// specification.
    #[doc(alias = "IsOCI")]
    pub fn is_oci(&self) -> bool {
        false
    }

    /// The processors the VM really has.
    #[doc(alias = "ProcessorCount")]
    pub fn processor_count(&self) -> u32 {
        self.machine.processors.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A number for a container's folder in the guest: 1 on the first call, never the same twice.
    #[doc(alias = "ContainerCounter")]
    pub fn container_counter(&self) -> u64 {
        self.machine.counters.next_container()
    }

    /// A number for a mount point in the guest, as `container_counter` and independent of it.
    #[doc(alias = "UVMMountCounter")]
    pub fn uvm_mount_counter(&self) -> u64 {
        self.machine.counters.next_mount()
    }

    /// What to remember of the VM's process in order to find it again.
    pub fn vm_identity(&self) -> &VmIdentity {
        self.machine.vm.identity()
    }

    /// When each step of the boot happened so far.
    pub fn timeline(&self) -> Timeline {
        self.machine.clock.read()
    }

    /// What the machine monitor says of the VM, in a word; why not, if it does not.
    pub async fn status(&self) -> String {
        match self.machine.vm.status().await {
            Ok(status) => format!("{status:?}").to_ascii_lowercase(),
            Err(error) => format!("unknown: {error}"),
        }
    }

    /// The last lines the guest's kernel wrote on its console.
    pub async fn console_tail(&self) -> String {
        self.machine.vm.console_tail().await
    }
}
