//! What a VM uses, in the words of hcsshim's shim statistics.

use serde::{Deserialize, Serialize};

/// What a VM uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualMachineStatistics {
    /// Its processors.
    pub processor: ProcessorStatistics,
    /// Its memory.
    pub memory: VirtualMachineMemoryStatistics,
}

/// What its processors used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessorStatistics {
    /// Time on the host's processors since the VM exists, in nanoseconds.
    #[serde(rename = "TotalRuntimeNS")]
    pub total_runtime_ns: u64,
}

/// What its memory is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualMachineMemoryStatistics {
    /// Host memory in use, in bytes. All of the guest's memory when it is physically backed.
    pub working_set_bytes: u64,
    /// NUMA nodes of the guest.
    pub virtual_node_count: u32,
    /// The guest's side.
    pub vm_memory: VirtualMachineMemory,
}

/// The guest's memory, in pages of 4096 bytes. The host platform of the seed balances memory
/// between VMs; nothing does here, so those numbers stay zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualMachineMemory {
    /// Per cent of the assigned memory that balancing thinks is free.
    pub available_memory: i32,
    /// Per cent that balancing keeps in reserve.
    pub available_memory_buffer: i32,
    /// Pages set aside on the host: all of a physically backed VM's, none of another's.
    pub reserved_memory: u64,
    /// Pages the guest has.
    pub assigned_memory: u64,
    /// Whether the host pages this VM's memory by a second level of its own.
    pub slp_active: bool,
    /// Whether memory is balanced.
    pub balancing_enabled: bool,
    /// Whether a balancing step is under way.
    pub dm_operation_in_progress: bool,
}
