//! The VM as one document, which extra JSON may change before it becomes a machine.
//!
//! ```text
//!   OptionsLcow --options--> JSON --merge(extra)--> JSON --parse--> VmDescription --lower--> VmConfig
//! ```
//!
//! The document has the shape and the names of the Windows host's compute documents wherever both
//! can say the same, so that extra JSON written for hcsshim goes on working; what only we have is
//! below `Coracle`. A name nobody knows is an error: an override that silently does nothing is
//! worse than none. `docs/vm-description.md` explains every field to users.

pub mod command_line;
mod lower;
mod options;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use coracle_vmm::{Accel, VmmError};
use serde::{Deserialize, Serialize};

use crate::merge::{MergeError, merge};
use crate::options::OptionsLcow;

pub use lower::{Surroundings, lower};
pub use options::{Place, describe};

/// The description of a VM with these options, their extra JSON merged in.
///
/// # Errors
/// Extra JSON that is no JSON object, or that says something nobody understands.
pub fn build(opts: &OptionsLcow, place: Place<'_>) -> Result<VmDescription, DescriptionError> {
    let plain = serde_json::to_value(describe(opts, place)).map_err(DescriptionError::Shape)?;
    let merged = merge(plain, &opts.options.addition_hcs_document_json)?;
    serde_json::from_value(merged).map_err(DescriptionError::Shape)
}

/// One VM, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct VmDescription {
    /// Who the VM belongs to.
    #[serde(default)]
    pub owner: Option<String>,
    /// The machine.
    pub virtual_machine: VirtualMachine,
    /// What only this implementation knows.
    #[serde(default)]
    pub coracle: Coracle,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct VirtualMachine {
    /// A guest that reboots ends the VM. Nothing else is possible here, so only `true` is taken.
    #[serde(default)]
    pub stop_on_reset: Option<bool>,
    /// What it boots.
    pub chipset: Chipset,
    /// Its memory and processors.
    pub compute_topology: ComputeTopology,
    /// What is plugged into it.
    #[serde(default)]
    pub devices: Devices,
    /// A limit over all disks together.
    #[serde(default, rename = "StorageQoS")]
    pub storage_qos: Option<StorageQos>,
}

/// What the machine boots: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Chipset {
    /// A kernel entered without firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux_kernel_direct: Option<Kernel>,
    /// A kernel started by UEFI firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uefi: Option<Kernel>,
}

/// A kernel and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Kernel {
    /// The kernel's file on the host.
    pub kernel_file_path: PathBuf,
    /// The initial RAM disk on the host.
    #[serde(default)]
    pub init_rd_path: Option<PathBuf>,
    /// The whole command line.
    #[serde(default)]
    pub kernel_cmd_line: String,
}

/// Memory and processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ComputeTopology {
    /// The memory.
    pub memory: Memory,
    /// The processors.
    #[serde(default)]
    pub processor: Processor,
}

/// The memory. Zero, null and absent mean the same: the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Memory {
    /// How much, in MiB.
    #[serde(default, rename = "SizeInMB")]
    pub size_in_mb: Option<u64>,
    /// The host may page it out.
    #[serde(default)]
    pub allow_overcommit: Option<bool>,
    /// The host promises a page only on its first use.
    #[serde(default)]
    pub enable_deferred_commit: Option<bool>,
    /// The guest reports what it does not use.
    #[serde(default)]
    pub enable_cold_discard_hint: Option<bool>,
    /// The hole below 4 GiB, in MiB.
    #[serde(default, rename = "LowMmioGapInMB")]
    pub low_mmio_gap_in_mb: Option<u64>,
    /// Where the high hole begins, in MiB. QEMU decides that itself; a value is only logged.
    #[serde(default, rename = "HighMmioBaseInMB")]
    pub high_mmio_base_in_mb: Option<u64>,
    /// How large the high hole is, in MiB.
    #[serde(default, rename = "HighMmioGapInMB")]
    pub high_mmio_gap_in_mb: Option<u64>,
}

/// The processors. Zero, null and absent mean the same: the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Processor {
    /// How many.
    #[serde(default)]
    pub count: Option<u32>,
    /// Their share of the host's processors, 100000 being all of `count`.
    #[serde(default)]
    pub limit: Option<u32>,
    /// How much they count against other VMs.
    #[serde(default)]
    pub weight: Option<u32>,
}

/// What is plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Devices {
    /// SCSI controllers by number, from 0 without a gap.
    #[serde(default)]
    pub scsi: BTreeMap<u32, ScsiController>,
    /// Persistent memory.
    #[serde(default, rename = "VirtualPMem")]
    pub virtual_pmem: Option<VirtualPmem>,
    /// Serial ports by number; there is number 0 only.
    #[serde(default)]
    pub com_ports: BTreeMap<u32, ComPort>,
    /// A screen and a keyboard.
    #[serde(default)]
    pub video_monitor: Option<VideoMonitor>,
}

/// A SCSI controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScsiController {}

/// Room for persistent memory, and what is there from power-on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct VirtualPmem {
    /// How many devices there may be.
    #[serde(default)]
    pub maximum_count: u32,
    /// How large each may be, in bytes.
    #[serde(default)]
    pub maximum_size_bytes: u64,
    /// The devices that are there, by number, from 0 without a gap.
    #[serde(default)]
    pub devices: BTreeMap<u32, PmemDevice>,
}

/// A persistent memory device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PmemDevice {
    /// The file behind it: a file system image, plain or as a fixed VHD.
    pub host_path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ComPort {
    /// The unix socket it listens on.
    pub named_pipe: PathBuf,
}

/// A screen and a keyboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct VideoMonitor {
    /// The unix socket that speaks VNC.
    pub socket: PathBuf,
}

/// A limit over all disks together; zero and absent mean none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct StorageQos {
    /// Operations a second.
    #[serde(default)]
    pub iops_maximum: Option<u64>,
    /// Bytes a second.
    #[serde(default)]
    pub bandwidth_maximum: Option<u64>,
}

/// What only this implementation knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Coracle {
    /// How guest code is run.
    #[serde(default)]
    pub accelerator: Accel,
    /// Memory must be locked into RAM, or the create fails. Physically backed memory is locked
    /// where the limits allow it even without this.
    #[serde(default)]
    pub lock_memory: bool,
    /// Let servers of the host see the memory, as a virtio-fs share needs.
    #[serde(default)]
    pub share_memory: bool,
    /// Memory is made of the host's huge pages, which servers of the host see too.
    #[serde(default)]
    pub huge_pages: bool,
    /// Features the processors have beyond the usual, or have not: `+name`, `-name`, `name=on|off`.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// The host's file that the guest's entropy comes from; absent: `getrandom`.
    #[serde(default)]
    pub entropy_source: Option<PathBuf>,
    /// Disks are served by a thread of their own.
    #[serde(default, rename = "IOThread")]
    pub io_thread: bool,
    /// Processors the VM can have while it runs; 0: as many as it begins with.
    #[serde(default)]
    pub max_processors: u32,
    /// Memory the VM can have while it runs; 0: as much as it begins with.
    #[serde(default, rename = "MaxMemoryInMB")]
    pub max_memory_in_mb: u64,
    /// Arguments appended to the machine monitor's own.
    #[serde(default)]
    pub monitor_arguments: Vec<String>,
}

/// The description cannot become a VM.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The extra JSON cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The merged document says something nobody understands.
    #[error("read the VM description")]
    Shape(#[source] serde_json::Error),
    /// The kernel is given twice or not at all.
    #[error("VM description: Chipset needs either LinuxKernelDirect or Uefi")]
    Chipset,
    /// The guest cannot reboot in place.
    #[error("VM description: StopOnReset cannot be false: a reset always ends the VM")]
    StopOnReset,
    /// Memory that is all there cannot also be promised only on use.
    #[error("EnableDeferredCommit is not supported on physically backed VMs")]
    DeferredCommitOnPhysical,
    /// Numbered devices with a gap, or more than there can be.
    #[error("VM description: {kind} must be numbered from 0 without a gap, {limit} at most")]
    Numbers {
        /// "SCSI controllers", "PMEM devices".
        kind: &'static str,
        /// How many there can be.
        limit: u32,
    },
    /// A PMEM device's file cannot be opened.
    #[error("open the PMEM file {}", path.display())]
    PmemOpen {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A PMEM device's file has a size no PMEM device can have.
    #[error("PMEM file {} has {size} bytes: not whole pages of 4096, at most {limit}", path.display())]
    PmemSize {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        size: u64,
        /// The largest it may be, in bytes.
        limit: u64,
    },
    /// A cold disk cannot be handed to the VM.
    #[error("duplicate the descriptor of the disk {serial}")]
    Disk {
        /// The disk's serial.
        serial: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name the machine monitor does not take.
    #[error("name a device")]
    DeviceName(#[source] VmmError),
}
