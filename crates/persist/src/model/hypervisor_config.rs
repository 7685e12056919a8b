//! What the VMM was configured with.

use serde::{Deserialize, Serialize};

/// What the VMM was configured with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HypervisorConfig {
    /// Virtual CPUs at boot.
    #[doc(alias = "NumVCPUs")]
    #[serde(rename = "NumVCPUs")]
    pub num_vcpus: u32,
    /// The most virtual CPUs there may be.
    #[doc(alias = "DefaultMaxVCPUs")]
    #[serde(rename = "DefaultMaxVCPUs")]
    pub default_max_vcpus: u32,
    /// Memory at boot, in MiB.
    #[doc(alias = "MemorySize")]
    #[serde(rename = "MemorySize")]
    pub memory_size: u32,
    /// Number of PCI bridges.
    #[doc(alias = "DefaultBridges")]
    #[serde(rename = "DefaultBridges")]
    pub default_bridges: u32,
    /// The `msize` of 9p mounts, in bytes.
    #[doc(alias = "Msize9p")]
    #[serde(rename = "Msize9p")]
    pub msize_9p: u32,
    /// Slots for memory that is plugged later.
    #[doc(alias = "MemSlots")]
    #[serde(rename = "MemSlots")]
    pub mem_slots: u32,
    /// Where memory of an nvdimm begins, in MiB. 64 bits from Kata 2.2 on.
    #[doc(alias = "MemOffset")]
    #[serde(rename = "MemOffset")]
    pub mem_offset: u32,
    /// The DAX window of virtio-fs, in MiB.
    #[doc(alias = "VirtioFSCacheSize")]
    #[serde(rename = "VirtioFSCacheSize")]
    pub virtio_fs_cache_size: u32,
    /// The kernel of the guest, a path on the host.
    #[doc(alias = "KernelPath")]
    #[serde(rename = "KernelPath")]
    pub kernel_path: String,
    /// The image of the guest, a path on the host; excludes `initrd_path`.
    #[doc(alias = "ImagePath")]
    #[serde(rename = "ImagePath")]
    pub image_path: String,
    /// The initrd of the guest, a path on the host; excludes `image_path`.
    #[doc(alias = "InitrdPath")]
    #[serde(rename = "InitrdPath")]
    pub initrd_path: String,
    /// The firmware, a path on the host.
    #[doc(alias = "FirmwarePath")]
    #[serde(rename = "FirmwarePath")]
    pub firmware_path: String,
    /// Accelerators of the machine, separated by commas.
    #[doc(alias = "MachineAccelerators")]
    #[serde(rename = "MachineAccelerators")]
    pub machine_accelerators: String,
    /// CPU features, separated by commas.
    #[doc(alias = "CPUFeatures")]
    #[serde(rename = "CPUFeatures")]
    pub cpu_features: String,
    /// The VMM, a path on the host.
    #[doc(alias = "HypervisorPath")]
    #[serde(rename = "HypervisorPath")]
    pub hypervisor_path: String,
    /// The control program of the VMM; ACRN.
    #[doc(alias = "HypervisorCtlPath")]
    #[serde(rename = "HypervisorCtlPath")]
    pub hypervisor_ctl_path: String,
    /// The jailer; Firecracker.
    #[doc(alias = "JailerPath")]
    #[serde(rename = "JailerPath")]
    pub jailer_path: String,
    /// How block devices appear: virtio-scsi, virtio-blk, virtio-mmio or nvdimm.
    #[doc(alias = "BlockDeviceDriver")]
    #[serde(rename = "BlockDeviceDriver")]
    pub block_device_driver: String,
    /// The type of the machine: pc, q35, virt and others.
    #[doc(alias = "HypervisorMachineType")]
    #[serde(rename = "HypervisorMachineType")]
    pub hypervisor_machine_type: String,
    /// Memory of a template, a file.
    #[doc(alias = "MemoryPath")]
    #[serde(rename = "MemoryPath")]
    pub memory_path: String,
    /// State of the devices of a template, a file.
    #[doc(alias = "DevicesStatePath")]
    #[serde(rename = "DevicesStatePath")]
    pub devices_state_path: String,
    /// Source of randomness on the host.
    #[doc(alias = "EntropySource")]
    #[serde(rename = "EntropySource")]
    pub entropy_source: String,
    /// virtio-9p or virtio-fs.
    #[doc(alias = "SharedFS")]
    #[serde(rename = "SharedFS")]
    pub shared_fs: String,
    /// The virtiofsd program.
    #[doc(alias = "VirtioFSDaemon")]
    #[serde(rename = "VirtioFSDaemon")]
    pub virtio_fs_daemon: String,
    /// The cache mode of virtio-fs.
    #[doc(alias = "VirtioFSCache")]
    #[serde(rename = "VirtioFSCache")]
    pub virtio_fs_cache: String,
    /// More arguments of virtiofsd. `None` is written as `null`.
    #[doc(alias = "VirtioFSExtraArgs")]
    #[serde(rename = "VirtioFSExtraArgs")]
    pub virtio_fs_extra_args: Option<Vec<String>>,
    /// Directory for guest memory that is backed by files.
    #[doc(alias = "FileBackedMemRootDir")]
    #[serde(rename = "FileBackedMemRootDir")]
    pub file_backed_mem_root_dir: String,
    /// The two options that follow apply.
    #[doc(alias = "BlockDeviceCacheSet")]
    #[serde(rename = "BlockDeviceCacheSet")]
    pub block_device_cache_set: bool,
    /// Block devices bypass the page cache of the host.
    #[doc(alias = "BlockDeviceCacheDirect")]
    #[serde(rename = "BlockDeviceCacheDirect")]
    pub block_device_cache_direct: bool,
    /// Flushes of block devices are ignored.
    #[doc(alias = "BlockDeviceCacheNoflush")]
    #[serde(rename = "BlockDeviceCacheNoflush")]
    pub block_device_cache_noflush: bool,
    /// No root file system or volume on a block device.
    #[doc(alias = "DisableBlockDeviceUse")]
    #[serde(rename = "DisableBlockDeviceUse")]
    pub disable_block_device_use: bool,
    /// virtio-scsi has an I/O thread.
    #[doc(alias = "EnableIOThreads")]
    #[serde(rename = "EnableIOThreads")]
    pub enable_io_threads: bool,
    /// Debug output of VMM and guest.
    #[doc(alias = "Debug")]
    #[serde(rename = "Debug")]
    pub debug: bool,
    /// Guest memory is allocated before the boot.
    #[doc(alias = "MemPrealloc")]
    #[serde(rename = "MemPrealloc")]
    pub mem_prealloc: bool,
    /// Guest memory is made of huge pages.
    #[doc(alias = "HugePages")]
    #[serde(rename = "HugePages")]
    pub huge_pages: bool,
    /// Memory grows and shrinks by virtio-mem.
    #[doc(alias = "VirtioMem")]
    #[serde(rename = "VirtioMem")]
    pub virtio_mem: bool,
    /// QEMU runs with real-time options. Gone in Kata 2.4.
    #[doc(alias = "Realtime")]
    #[serde(rename = "Realtime")]
    pub realtime: bool,
    /// Guest memory is locked. Gone in Kata 2.4.
    #[doc(alias = "Mlock")]
    #[serde(rename = "Mlock")]
    pub mlock: bool,
    /// Nothing changes when the host is itself a guest.
    #[doc(alias = "DisableNestingChecks")]
    #[serde(rename = "DisableNestingChecks")]
    pub disable_nesting_checks: bool,
    /// The agent is reached by vsock. Gone in Kata 2.0.
    #[doc(alias = "UseVSock")]
    #[serde(rename = "UseVSock")]
    pub use_vsock: bool,
    /// The image is a block device, not an nvdimm.
    #[doc(alias = "DisableImageNvdimm")]
    #[serde(rename = "DisableImageNvdimm")]
    pub disable_image_nvdimm: bool,
    /// VFIO devices are plugged into the root bus. Other options from Kata 3.2 on.
    #[doc(alias = "HotplugVFIOOnRootBus")]
    #[serde(rename = "HotplugVFIOOnRootBus")]
    pub hotplug_vfio_on_root_bus: bool,
    /// Number of PCIe root ports.
    #[doc(alias = "PCIeRootPort")]
    #[serde(rename = "PCIeRootPort")]
    pub pcie_root_port: u32,
    /// The VM becomes a template.
    #[doc(alias = "BootToBeTemplate")]
    #[serde(rename = "BootToBeTemplate")]
    pub boot_to_be_template: bool,
    /// The VM comes from a template.
    #[doc(alias = "BootFromTemplate")]
    #[serde(rename = "BootFromTemplate")]
    pub boot_from_template: bool,
    /// Networks do without vhost-net.
    #[doc(alias = "DisableVhostNet")]
    #[serde(rename = "DisableVhostNet")]
    pub disable_vhost_net: bool,
    /// vhost-user devices may be used.
    #[doc(alias = "EnableVhostUserStore")]
    #[serde(rename = "EnableVhostUserStore")]
    pub enable_vhost_user_store: bool,
    /// The directory of their sockets and device nodes.
    #[doc(alias = "VhostUserStorePath")]
    #[serde(rename = "VhostUserStorePath")]
    pub vhost_user_store_path: String,
    /// Where OCI hooks are in the guest.
    #[doc(alias = "GuestHookPath")]
    #[serde(rename = "GuestHookPath")]
    pub guest_hook_path: String,
    /// The id of the VM when it came from the factory; its directory is removed at the stop.
    #[doc(alias = "VMid")]
    #[serde(rename = "VMid")]
    pub vm_id: String,
}
