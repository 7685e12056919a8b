//! Whether options describe a VM that can be made, decided before anything changes.
//!
//! The checks, their order and their texts are the seed's, since tools match on them; the one of
//! a later version that is added (deferred commit without overcommit) stands where that version
//! has it. Facts about the host and its files come in as arguments, so that every case is a plain
//! function call.

use std::io;
use std::path::{Path, PathBuf};

use crate::options::{MAX_VPMEM_COUNT, Options, OptionsLcow, OptionsWcow, PreferredRootFsType};

/// The most disks that are there from power-on: half of the bus.
pub const COLD_DISKS: usize = 16;

/// Options that no VM can be made from. The texts are the seed's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The kernel is not in the boot files folder.
    #[error("kernel: '{}' not found", .0.display())]
    KernelNotFound(PathBuf),
    /// The root file system is not in the boot files folder.
    #[error("boot file: '{}' not found", .0.display())]
    BootFileNotFound(PathBuf),
    /// Memory that is all there cannot also be promised only on use.
    #[error("EnableDeferredCommit is not supported on physically backed VMs")]
    DeferredCommitOnPhysical,
    /// There is at most one SCSI controller.
    #[error("SCSI controller count must be 0 to 4")]
    ScsiControllerCount,
    /// More PMEM devices than can be.
    #[error("vpmem device count cannot be greater than {MAX_VPMEM_COUNT}")]
    VpmemDeviceCount,
    /// PMEM devices consist of whole pages.
    #[error("opts.VPMemSizeBytes must be a multiple of 4096")]
    VpmemSize,
    /// A root image needs PMEM device 0.
    #[error("PreferredRootFSTypeVHD requires at least one VPMem device")]
    VhdWithoutVpmem,
    /// The host cannot boot a kernel without firmware.
    #[error("KernelDirectBoot is not support on builds older than 18286")]
    KernelDirectUnsupported,
    /// The host cannot take unused memory back.
    #[error("EnableColdDiscardHint is not supported on builds older than 18967")]
    ColdDiscardUnsupported,
    /// Files and processes are named after the id.
    #[error("ID '{0}' is not 1 to 128 letters, digits or '.', '_', '-', '@', the first no sign")]
    Id(String),
    /// A processor limit is 1 to 100000, the whole of the processors.
    #[error("ProcessorLimit {0} is not between 1 and 100000")]
    ProcessorLimit(u32),
    /// A processor weight is at most 10000.
    #[error("ProcessorWeight {0} is greater than 10000")]
    ProcessorWeight(u32),
    /// A disk's serial cannot be carried by a virtio disk, or is there twice.
    #[error("cold disk serial '{0}' is not 1 to 20 printable characters, or is used twice")]
    DiskSerial(String),
    /// More disks than there are places for on the bus.
    #[error("{disks} cold disks are more than the {COLD_DISKS} there are places for")]
    TooManyDisks {
        /// How many disks there are.
        disks: usize,
    },
    /// A Windows VM needs its base and its scratch.
    #[error("at least 2 LayerFolders must be supplied")]
    LayerFolders,
    /// None of the layers holds a Windows VM's image.
    #[error("failed to locate utility VM folder from layer folders: no UtilityVM folder in {0:?}")]
    NoUtilityVmFolder(Vec<PathBuf>),
}

/// What the host can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Processors that this process may use.
    pub processors: u32,
    /// A kernel can be booted without firmware.
    pub kernel_direct: bool,
    /// Unused guest memory can be given back.
    pub cold_discard: bool,
}

impl HostFacts {
    /// This host, with QEMU, which can do both.
    pub fn detect() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        Self { processors, kernel_direct: true, cold_discard: true }
    }
}

impl Options {
    /// The processors the VM gets: what was asked for, but no more than the host has. 0 is left
    /// to the platform.
    pub fn capped_processors(&self, host: &HostFacts) -> u32 {
        self.processor_count.min(host.processors)
    }

    /// The memory the VM gets, in MiB: what was asked for, rounded up to an even number.
    pub fn aligned_memory(&self) -> u32 {
        self.memory_size_in_mb.checked_next_multiple_of(2).unwrap_or(u32::MAX - 1)
    }
}

/// Checks the options of a Linux VM. `exists` says whether a file can be seen; only an answer
/// that it is certainly not there counts.
///
/// # Errors
/// The first thing that is wrong, in the seed's order.
pub fn check_lcow(
    opts: &OptionsLcow,
    host: &HostFacts,
    exists: impl Fn(&Path) -> bool,
) -> Result<(), OptionsError> {
    let kernel = opts.boot_files_path.join(&opts.kernel_file);
    if !exists(&kernel) {
        return Err(OptionsError::KernelNotFound(kernel));
    }
    let root = opts.boot_files_path.join(&opts.root_fs_file);
    if !exists(&root) {
        return Err(OptionsError::BootFileNotFound(root));
    }
    if opts.options.enable_deferred_commit && !opts.options.allow_overcommit {
        return Err(OptionsError::DeferredCommitOnPhysical);
    }
    if opts.scsi_controller_count > 4 {
        return Err(OptionsError::ScsiControllerCount);
    }
    if opts.vpmem_device_count > MAX_VPMEM_COUNT {
        return Err(OptionsError::VpmemDeviceCount);
    }
    if opts.vpmem_device_count > 0 && !opts.vpmem_size_bytes.is_multiple_of(4096) {
        return Err(OptionsError::VpmemSize);
    }
    if opts.vpmem_device_count == 0 && opts.preferred_root_fs_type == PreferredRootFsType::Vhd {
        return Err(OptionsError::VhdWithoutVpmem);
    }
    if opts.kernel_direct && !host.kernel_direct {
        return Err(OptionsError::KernelDirectUnsupported);
    }
    if opts.enable_cold_discard_hint && !host.cold_discard {
        return Err(OptionsError::ColdDiscardUnsupported);
    }
    check_id(&opts.options.id)?;
    check_processors(&opts.options)?;
    check_cold_disks(opts)
}

/// The seed takes any text for an id. Here a folder and a control group are named after it, so it
/// must not lead anywhere else. Empty is one that is still to be made.
fn check_id(id: &str) -> Result<(), OptionsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let first = id.chars().next().is_none_or(|c| c.is_ascii_alphanumeric());
    if first && id.len() <= 128 && id.chars().all(plain) {
        return Ok(());
    }
    Err(OptionsError::Id(id.to_owned()))
}

/// The ranges the seed leaves to its platform.
fn check_processors(options: &Options) -> Result<(), OptionsError> {
    if options.processor_limit > 100_000 {
        return Err(OptionsError::ProcessorLimit(options.processor_limit));
    }
    if options.processor_weight > 10_000 {
        return Err(OptionsError::ProcessorWeight(options.processor_weight));
    }
    Ok(())
}

fn check_cold_disks(opts: &OptionsLcow) -> Result<(), OptionsError> {
    let disks = &opts.host.cold_disks;
    if disks.len() > COLD_DISKS {
        return Err(OptionsError::TooManyDisks { disks: disks.len() });
    }
    let mut seen = std::collections::HashSet::new();
    for disk in disks {
        let serial = &disk.serial;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let carried = (1..=20).contains(&serial.len()) && serial.chars().all(plain);
        if !carried || !seen.insert(serial) {
            return Err(OptionsError::DiskSerial(serial.clone()));
        }
    }
    Ok(())
}

/// Checks the options of a Windows VM and finds the layer with its image.
///
/// # Errors
/// Fewer than two layers, or none with a `UtilityVM` folder.
pub fn check_wcow(
    opts: &OptionsWcow,
    is_folder: impl Fn(&Path) -> bool,
) -> Result<&Path, OptionsError> {
    if opts.layer_folders.len() < 2 {
        return Err(OptionsError::LayerFolders);
    }
    opts.layer_folders
        .iter()
        .find(|layer| is_folder(&layer.join("UtilityVM")))
        .map(PathBuf::as_path)
        .ok_or_else(|| OptionsError::NoUtilityVmFolder(opts.layer_folders.clone()))
}

/// False only if the file is certainly not there: an unreadable folder is not a missing file, and
/// whoever opens it next reports it better.
pub fn exists_on_host(path: &Path) -> bool {
    !matches!(path.symlink_metadata().and_then(|_| path.metadata()),
        Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ColdDisk, INITRD_FILE};
    use proptest::prelude::*;
    use std::sync::Arc;

    const HOST: HostFacts = HostFacts { processors: 4, kernel_direct: true, cold_discard: true };

    fn lcow() -> OptionsLcow {
        OptionsLcow::with_boot_files("id", "owner", "/boot-files")
    }

    fn verdict(change: impl FnOnce(&mut OptionsLcow)) -> Result<(), OptionsError> {
        let mut opts = lcow();
        change(&mut opts);
        check_lcow(&opts, &HOST, |_| true)
    }

    fn text(change: impl FnOnce(&mut OptionsLcow)) -> String {
        verdict(change).unwrap_err().to_string()
    }

    #[test]
    fn the_default_options_are_good() {
        assert_eq!(verdict(|_| {}), Ok(()));
    }

    #[test]
    fn a_missing_kernel_is_named_with_its_path() {
        let error = check_lcow(&lcow(), &HOST, |_| false).unwrap_err();
        assert_eq!(error.to_string(), "kernel: '/boot-files/kernel' not found");
    }

    #[test]
    fn a_missing_root_file_system_is_named_with_its_path() {
        let error = check_lcow(&lcow(), &HOST, |path| !path.ends_with(INITRD_FILE)).unwrap_err();
        assert_eq!(error.to_string(), "boot file: '/boot-files/initrd.img' not found");
    }

    #[test]
    fn each_bad_device_count_has_its_text() {
        assert_eq!(text(|o| o.scsi_controller_count = 5), "SCSI controller count must be 0 to 4");
        assert_eq!(
            text(|o| o.vpmem_device_count = 129),
            "vpmem device count cannot be greater than 128"
        );
        assert_eq!(
            text(|o| o.vpmem_size_bytes = 4097),
            "opts.VPMemSizeBytes must be a multiple of 4096"
        );
        assert_eq!(
            text(|o| {
                o.vpmem_device_count = 0;
                o.preferred_root_fs_type = PreferredRootFsType::Vhd;
            }),
            "PreferredRootFSTypeVHD requires at least one VPMem device"
        );
    }

    #[test]
    fn a_pmem_size_counts_only_when_there_are_pmem_devices() {
        let none = |o: &mut OptionsLcow| (o.vpmem_device_count, o.vpmem_size_bytes) = (0, 1);
        assert_eq!(verdict(none), Ok(()));
        assert_eq!(verdict(|o| o.vpmem_device_count = 128), Ok(()));
    }

    #[test]
    fn of_the_four_memory_backings_only_deferred_physical_is_refused() {
        for (overcommit, deferred) in [(true, false), (true, true), (false, false)] {
            assert_eq!(
                verdict(|o| {
                    o.options.allow_overcommit = overcommit;
                    o.options.enable_deferred_commit = deferred;
                }),
                Ok(())
            );
        }
        assert_eq!(
            text(|o| {
                o.options.allow_overcommit = false;
                o.options.enable_deferred_commit = true;
            }),
            "EnableDeferredCommit is not supported on physically backed VMs"
        );
    }

    #[test]
    fn what_the_host_cannot_do_is_refused() {
        let old = HostFacts { kernel_direct: false, cold_discard: false, ..HOST };
        let error = check_lcow(&lcow(), &old, |_| true).unwrap_err();
        assert_eq!(error.to_string(), "KernelDirectBoot is not support on builds older than 18286");
        let mut opts = lcow();
        opts.kernel_direct = false;
        opts.enable_cold_discard_hint = true;
        let error = check_lcow(&opts, &old, |_| true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "EnableColdDiscardHint is not supported on builds older than 18967"
        );
    }

    #[test]
    fn the_files_are_looked_for_before_the_numbers_are_read() {
        let mut opts = lcow();
        opts.scsi_controller_count = 9;
        let error = check_lcow(&opts, &HOST, |_| false).unwrap_err();
        assert!(matches!(error, OptionsError::KernelNotFound(_)), "{error}");
    }

    #[test]
    fn processor_limits_beyond_the_whole_are_refused() {
        assert!(verdict(|o| o.options.processor_limit = 90_000).is_ok());
        assert!(verdict(|o| o.options.processor_limit = 100_001).is_err());
        assert!(verdict(|o| o.options.processor_weight = 10_001).is_err());
    }

    #[test]
    fn an_id_never_leads_to_another_folder() {
        for id in ["", "a", "pod-7@vm", "00000000-0000-0000-0000-000000000000"] {
            assert!(verdict(|o| o.options.id = id.to_owned()).is_ok(), "{id}");
        }
        for id in [".", "..", "../a", "a/b", "/a", "-a", "a b", "a\0", &"a".repeat(129)] {
            assert!(verdict(|o| o.options.id = id.to_owned()).is_err(), "{id}");
        }
    }

    fn disk(serial: &str) -> ColdDisk {
        let file = std::fs::File::open("/dev/null").unwrap();
        let file = Arc::new(file.into());
        ColdDisk { serial: serial.to_owned(), file, read_only: true, mount: None }
    }

    #[test]
    fn cold_disks_need_room_and_their_own_serials() {
        assert!(verdict(|o| o.host.cold_disks = vec![disk("a"), disk("b")]).is_ok());
        for serials in [&["a", "a"][..], &[""], &["a,b=c"], &["a b"]] {
            let disks = serials.iter().map(|serial| disk(serial)).collect();
            assert!(verdict(|o| o.host.cold_disks = disks).is_err(), "{serials:?}");
        }
        let alone = |o: &mut OptionsLcow| {
            o.host.cold_disks = vec![disk("a")];
            o.scsi_controller_count = 0;
        };
        assert!(verdict(alone).is_ok(), "they need no controller");
        let many = |o: &mut OptionsLcow| {
            o.host.cold_disks = (0..=COLD_DISKS).map(|n| disk(&n.to_string())).collect();
        };
        assert!(matches!(verdict(many), Err(OptionsError::TooManyDisks { disks: 17 })));
    }

    #[test]
    fn a_windows_vm_needs_its_layers() {
        let mut opts = OptionsWcow::new_default("id", "owner");
        let error = check_wcow(&opts, |_| true).unwrap_err();
        assert_eq!(error.to_string(), "at least 2 LayerFolders must be supplied");
        opts.layer_folders = ["top", "base", "scratch"].map(PathBuf::from).to_vec();
        let error = check_wcow(&opts, |_| false).unwrap_err().to_string();
        let start = "failed to locate utility VM folder from layer folders: ";
        assert!(error.starts_with(start), "{error}");
        let found = check_wcow(&opts, |path| path.starts_with("base"));
        assert_eq!(found, Ok(Path::new("base")));
    }

    proptest! {
        #[test]
        fn memory_is_rounded_up_to_even(asked in 0..u32::MAX) {
            let mut options = lcow().options;
            options.memory_size_in_mb = asked;
            let given = options.aligned_memory();
            prop_assert_eq!(given % 2, 0);
            prop_assert!(given.abs_diff(asked) <= 1);
        }

        #[test]
        fn processors_are_capped_by_the_host(asked: u32) {
            let mut options = lcow().options;
            options.processor_count = asked;
            prop_assert_eq!(options.capped_processors(&HOST), asked.min(4));
        }
    }
}
