//! The numbers and names that the seed publishes, and its private ones that are on the wire.

/// The most PMEM devices a VM may have.
#[doc(alias = "MaxVPMEMCount")]
pub const MAX_VPMEM_COUNT: u32 = 128;

/// How many PMEM devices a VM has room for when its options do not say.
#[doc(alias = "DefaultVPMEMCount")]
pub const DEFAULT_VPMEM_COUNT: u32 = 64;

/// The size of one PMEM device when the options do not say: 4 GiB, in bytes.
#[doc(alias = "DefaultVPMemSizeBytes")]
pub const DEFAULT_VPMEM_SIZE_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// The file name of the initial RAM disk in the boot files folder.
#[doc(alias = "InitrdFile")]
pub const INITRD_FILE: &str = "initrd.img";

/// The file name of a root file system image in the boot files folder.
#[doc(alias = "VhdFile")]
pub const VHD_FILE: &str = "rootfs.vhd";

/// The file name of the kernel in the boot files folder.
#[doc(alias = "KernelFile")]
pub const KERNEL_FILE: &str = "kernel";

/// The file name of an uncompressed kernel, which is preferred for a direct boot.
#[doc(alias = "UncompressedKernelFile")]
pub const UNCOMPRESSED_KERNEL_FILE: &str = "vmlinux";

/// How many random bytes the guest is given before its first process starts.
pub const ENTROPY_BYTES: usize = 512;

/// How many disks fit on one SCSI controller.
pub const SCSI_LUNS: u8 = 64;

/// The agent that hcsshim's guest starts when the options do not say, at the default log level.
pub const DEFAULT_EXEC_COMMAND_LINE: &str = "/bin/gcs -v4 -log-format json -loglevel info";
