//! What a caller says about the VM it wants.
//!
//! The seed's three option structures, field by field, with its names and defaults; the
//! serialised form carries the seed's own spelling. What a Linux host needs to know beyond them
//! (where sockets go, who keeps the channel, disks that are there from power-on) is apart in
//! [`HostOptions`], so that it is plain which is whose. The structures only hold what was said:
//! [`crate::validate`] judges it, [`crate::description`] turns it into a VM.

mod constants;
mod defaults;
mod host;
mod output;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use coracle_vmm::DiskCache;

pub use constants::{
    DEFAULT_EXEC_COMMAND_LINE, DEFAULT_VPMEM_COUNT, DEFAULT_VPMEM_SIZE_BYTES, ENTROPY_BYTES,
    INITRD_FILE, KERNEL_FILE, MAX_VPMEM_COUNT, SCSI_LUNS, UNCOMPRESSED_KERNEL_FILE, VHD_FILE,
};
pub use defaults::{default_root, default_run_dir};
pub use host::{
    ChannelBacking, ColdDisk, ColdMount, HostOptions, KeeperPlacement, OwnCgroup, ShareServers,
    VirtioFsCache, VirtioFsServer,
};
pub use output::{OutputHandler, OutputStream};

/// What every utility VM has in common, whatever runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Options {
    /// The VM's name among its peers. Empty: a random UUID is made at create.
    #[doc(alias = "ID")]
    #[serde(rename = "ID")]
    pub id: String,
    /// Who the VM belongs to, for people who look at it. Default: the program's file name.
    pub owner: String,
    /// JSON merged into the VM description just before create; what it says wins. Empty: nothing.
    /// See `docs/vm-description.md` for what it may say, [`crate::merge`] for how.
    #[doc(alias = "AdditionHCSDocumentJSON")]
    #[serde(rename = "AdditionHCSDocumentJSON")]
    pub addition_hcs_document_json: String,
    /// Memory in MiB, rounded up to an even number. 0: the platform's default, 1024 here.
    #[doc(alias = "MemorySizeInMB")]
    #[serde(rename = "MemorySizeInMB")]
    pub memory_size_in_mb: u32,
    /// The hole below 4 GiB that is kept for devices, in MiB. 0: the platform's default.
    #[doc(alias = "LowMMIOGapInMB")]
    #[serde(rename = "LowMMIOGapInMB")]
    pub low_mmio_gap_in_mb: u64,
    /// Where the high device hole begins, in MiB. 0: the platform's default.
    #[doc(alias = "HighMMIOBaseInMB")]
    #[serde(rename = "HighMMIOBaseInMB")]
    pub high_mmio_base_in_mb: u64,
    /// How large the high device hole is, in MiB. 0: the platform's default.
    #[doc(alias = "HighMMIOGapInMB")]
    #[serde(rename = "HighMMIOGapInMB")]
    pub high_mmio_gap_in_mb: u64,
    /// True: the VM's memory is the host's to page out. False: all of it is there, and stays.
    pub allow_overcommit: bool,
    /// Promise the VM no memory before it touches it. Only with `allow_overcommit`.
    pub enable_deferred_commit: bool,
    /// Virtual processors, at most as many as the host has. 0: the platform's default, 1 here.
    pub processor_count: u32,
    /// The share of its processors' time the VM may use, 100000 being all of it. 0: no limit.
    pub processor_limit: u32,
    /// How much the VM counts when VMs compete for the processors, up to 10000. 0: the
    /// platform's default, 100.
    pub processor_weight: u32,
    /// The most disk operations a second, over all disks. 0: no limit.
    #[doc(alias = "StorageQoSIopsMaximum")]
    #[serde(rename = "StorageQoSIopsMaximum")]
    pub storage_qos_iops_maximum: u32,
    /// The most disk bytes a second, over all disks. 0: no limit.
    #[doc(alias = "StorageQoSBandwidthMaximum")]
    #[serde(rename = "StorageQoSBandwidthMaximum")]
    pub storage_qos_bandwidth_maximum: u32,
    /// Whether this library speaks to the guest (true) or the host platform does (false). On
    /// Linux no platform ever speaks to a guest, so both make the same connection.
    pub external_guest_connection: bool,
}

/// What kind of root file system a Linux VM boots into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[doc(alias = "PreferredRootFSType")]
#[serde(into = "u8", try_from = "u8")]
pub enum PreferredRootFsType {
    /// The initial RAM disk is the root.
    #[default]
    #[doc(alias = "PreferredRootFSTypeInitRd")]
    InitRd,
    /// An image on PMEM device 0 is the root.
    #[doc(alias = "PreferredRootFSTypeVHD")]
    Vhd,
}

impl From<PreferredRootFsType> for u8 {
    fn from(kind: PreferredRootFsType) -> Self {
        match kind {
            PreferredRootFsType::InitRd => 0,
            PreferredRootFsType::Vhd => 1,
        }
    }
}

impl TryFrom<u8> for PreferredRootFsType {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::InitRd),
            1 => Ok(Self::Vhd),
            _ => Err(format!("{number} is no root file system type: 0 is an initrd, 1 an image")),
        }
    }
}

/// Options of a VM that runs Linux, for [`crate::UtilityVm::create_lcow`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[doc(alias = "OptionsLCOW")]
#[serde(rename_all = "PascalCase")]
pub struct OptionsLcow {
    /// What every VM has.
    #[serde(flatten)]
    pub options: Options,
    /// The folder with the kernel and the root file system. Default: `guest` under
    /// [`default_root`].
    pub boot_files_path: PathBuf,
    /// The kernel's file name there. Default: `vmlinux` if it is there, else `kernel`.
    pub kernel_file: String,
    /// Boot the kernel without firmware.
    pub kernel_direct: bool,
    /// The root file system's file name there. A caller who changes it also sets
    /// `preferred_root_fs_type`; the two are not compared.
    #[doc(alias = "RootFSFile")]
    #[serde(rename = "RootFSFile")]
    pub root_fs_file: String,
    /// Words appended to the kernel's command line.
    pub kernel_boot_options: String,
    /// Give the VM a screen and a keyboard: VNC on the unix socket `graphics.sock` in the run
    /// folder.
    pub enable_graphics_console: bool,
    /// A unix socket the VM's serial console listens on. Empty: none.
    pub console_pipe: String,
    /// SCSI controllers, 0 or 1.
    #[doc(alias = "SCSIControllerCount")]
    #[serde(rename = "SCSIControllerCount")]
    pub scsi_controller_count: u32,
    /// Whether an agent that speaks the bridge protocol is expected in the guest.
    pub use_guest_connection: bool,
    /// What the guest's init runs.
    pub exec_command_line: String,
    /// Forward that program's standard output to the output handler.
    pub forward_stdout: bool,
    /// Forward its standard error there.
    pub forward_stderr: bool,
    /// What is done with the forwarded output. None: [`crate::output`] parses it as JSON log
    /// lines.
    #[serde(skip)]
    pub output_handler: Option<OutputHandler>,
    /// Room for this many PMEM devices, at most [`MAX_VPMEM_COUNT`]. Device 0 is taken when the
    /// root file system is an image.
    #[serde(rename = "VPMemDeviceCount")]
    #[doc(alias = "VPMemDeviceCount")]
    pub vpmem_device_count: u32,
    /// The largest file that fits a PMEM device, in bytes, a multiple of 4096.
    #[serde(rename = "VPMemSizeBytes")]
    #[doc(alias = "VPMemSizeBytes")]
    pub vpmem_size_bytes: u64,
    /// What kind of root file system `root_fs_file` is.
    #[serde(rename = "PreferredRootFSType")]
    #[doc(alias = "PreferredRootFSType")]
    pub preferred_root_fs_type: PreferredRootFsType,
    /// Give memory the guest does not use back to the host.
    pub enable_cold_discard_hint: bool,
    /// Whether the guest's kernel may use PCI. On QEMU it always does: every device is behind it.
    #[serde(rename = "VPCIEnabled")]
    #[doc(alias = "VPCIEnabled")]
    pub vpci_enabled: bool,
    /// Ours, not the seed's: what a Linux host wants to know.
    #[serde(skip)]
    pub host: HostOptions,
}

/// Options of a VM that runs Windows, for [`crate::UtilityVm::create_wcow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[doc(alias = "OptionsWCOW")]
#[serde(rename_all = "PascalCase")]
pub struct OptionsWcow {
    /// What every VM has.
    #[serde(flatten)]
    pub options: Options,
    /// The read-only layers, top-most first, then the base layer, then the scratch folder.
    pub layer_folders: Vec<PathBuf>,
}
