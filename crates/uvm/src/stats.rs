//! What a VM uses, seen from the host.
//!
//! Read anew on every call: the seed looks its memory process up once and keeps a failure for
//! ever, so that a call that came too early made all later ones fail.

use coracle_vmm::{MiB, VmStats};

use crate::errors::{Result, UvmError};
use crate::lifecycle::UtilityVm;
use crate::schema::{
    ProcessorStatistics, VirtualMachineMemory, VirtualMachineMemoryStatistics,
    VirtualMachineStatistics,
};

const PAGE_BYTES: u64 = 4096;

impl UtilityVm {
    /// The VM's processor time and memory.
    ///
    /// # Errors
    /// The VM has no process any more.
    #[doc(alias = "Stats")]
    pub async fn stats(&self) -> Result<VirtualMachineStatistics> {
        let machine = &self.machine;
        let seen = machine.vm.stats().await;
        let seen = seen.map_err(|source| UvmError::Stats { id: machine.id.clone(), source })?;
        Ok(statistics(seen, MiB(self.memory_in_mib()), machine.physical_memory))
    }
}

fn statistics(seen: VmStats, memory: MiB, physical: bool) -> VirtualMachineStatistics {
    let assigned = memory.bytes();
    VirtualMachineStatistics {
        processor: ProcessorStatistics {
            total_runtime_ns: u64::try_from(seen.cpu_time.as_nanos()).unwrap_or(u64::MAX),
        },
        memory: VirtualMachineMemoryStatistics {
            working_set_bytes: if physical { assigned } else { seen.resident_bytes },
            virtual_node_count: 1,
            vm_memory: VirtualMachineMemory {
                reserved_memory: if physical { assigned / PAGE_BYTES } else { 0 },
                assigned_memory: assigned / PAGE_BYTES,
                ..VirtualMachineMemory::default()
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SEEN: VmStats = VmStats {
        resident_bytes: 50 << 20,
        cpu_time: Duration::from_millis(1500),
        uptime: Duration::from_secs(9),
    };

    #[test]
    fn a_pageable_vm_uses_what_its_process_holds() {
        let stats = statistics(SEEN, MiB(256), false);
        assert_eq!(stats.processor.total_runtime_ns, 1_500_000_000);
        assert_eq!(stats.memory.working_set_bytes, 50 << 20);
        assert_eq!(stats.memory.vm_memory.assigned_memory, 65536);
        assert_eq!(stats.memory.vm_memory.reserved_memory, 0);
    }

    #[test]
    fn a_physically_backed_vm_uses_all_it_was_given() {
        let stats = statistics(SEEN, MiB(256), true);
        assert_eq!(stats.memory.working_set_bytes, 256 << 20);
        assert_eq!(stats.memory.vm_memory.reserved_memory, 65536);
    }
}
