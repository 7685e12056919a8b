//! From options to the description, before extra JSON changes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use super::{
    Chipset, ComPort, ComputeTopology, Coracle, Devices, Kernel, Memory, PmemDevice, Processor,
    ScsiController, StorageQos, VideoMonitor, VirtualMachine, VirtualPmem, VmDescription,
    command_line,
};
use crate::options::{INITRD_FILE, OptionsLcow, PreferredRootFsType};
use crate::validate::HostFacts;

/// What the options do not say and the description needs.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The VM's run folder.
    pub run_dir: &'a Path,
    /// What the host can do.
    pub host: HostFacts,
    /// What runs guest code.
    pub processor: command_line::Processor,
    /// The host's clock.
    pub now: SystemTime,
}

/// The description of a Linux VM with these options, which have been checked.
pub fn describe(opts: &OptionsLcow, place: Place<'_>) -> VmDescription {
    let (iops, bandwidth) =
        (opts.options.storage_qos_iops_maximum, opts.options.storage_qos_bandwidth_maximum);
    VmDescription {
        owner: Some(opts.options.owner.clone()),
        virtual_machine: VirtualMachine {
            stop_on_reset: Some(true),
            chipset: chipset(opts, place),
            compute_topology: topology(opts, &place.host),
            devices: devices(opts, place.run_dir),
            storage_qos: (iops > 0 || bandwidth > 0).then(|| StorageQos {
                iops_maximum: some(iops.into()),
                bandwidth_maximum: some(bandwidth.into()),
            }),
        },
        coracle: Coracle {
            accelerator: opts.host.accelerator,
            lock_memory: opts.host.lock_memory,
            share_memory: opts.host.share_memory,
            huge_pages: opts.host.huge_pages,
            cpu_features: opts.host.cpu_features.clone(),
            entropy_source: opts.host.entropy_source.clone(),
            io_thread: opts.host.io_thread,
            max_processors: opts.host.max_processors,
            max_memory_in_mb: opts.host.max_memory_mib,
            monitor_arguments: Vec::new(),
        },
    }
}

fn chipset(opts: &OptionsLcow, place: Place<'_>) -> Chipset {
    // A root image is mounted by the initial RAM disk, which then moves into it; so there is one
    // in either case.
    let initrd = match opts.preferred_root_fs_type {
        PreferredRootFsType::InitRd => &opts.root_fs_file,
        PreferredRootFsType::Vhd => INITRD_FILE,
    };
    let kernel = Kernel {
        kernel_file_path: opts.boot_files_path.join(&opts.kernel_file),
        init_rd_path: Some(opts.boot_files_path.join(initrd)),
        kernel_cmd_line: command_line::command_line(opts, place.processor, place.now),
    };
    if opts.kernel_direct {
        Chipset { linux_kernel_direct: Some(kernel), uefi: None }
    } else {
        Chipset { linux_kernel_direct: None, uefi: Some(kernel) }
    }
}

fn topology(opts: &OptionsLcow, host: &HostFacts) -> ComputeTopology {
    let options = &opts.options;
    ComputeTopology {
        memory: Memory {
            size_in_mb: some(options.aligned_memory().into()),
            allow_overcommit: Some(options.allow_overcommit),
            enable_deferred_commit: Some(options.enable_deferred_commit),
            enable_cold_discard_hint: Some(opts.enable_cold_discard_hint),
            low_mmio_gap_in_mb: some(options.low_mmio_gap_in_mb),
            high_mmio_base_in_mb: some(options.high_mmio_base_in_mb),
            high_mmio_gap_in_mb: some(options.high_mmio_gap_in_mb),
        },
        processor: Processor {
            count: Some(options.capped_processors(host)).filter(|count| *count > 0),
            limit: Some(options.processor_limit).filter(|limit| *limit > 0),
            weight: Some(options.processor_weight).filter(|weight| *weight > 0),
        },
    }
}

fn devices(opts: &OptionsLcow, run_dir: &Path) -> Devices {
    let root = opts.boot_files_path.join(&opts.root_fs_file);
    let root_device = (opts.preferred_root_fs_type == PreferredRootFsType::Vhd)
        .then_some((0, PmemDevice { host_path: root, read_only: true }));
    let console = (!opts.console_pipe.is_empty())
        .then(|| (0, ComPort { named_pipe: opts.console_pipe.clone().into() }));
    Devices {
        scsi: (0..opts.scsi_controller_count).map(|n| (n, ScsiController {})).collect(),
        virtual_pmem: (opts.vpmem_device_count > 0).then(|| VirtualPmem {
            maximum_count: opts.vpmem_device_count,
            maximum_size_bytes: opts.vpmem_size_bytes,
            devices: BTreeMap::from_iter(root_device),
        }),
        com_ports: BTreeMap::from_iter(console),
        video_monitor: opts
            .enable_graphics_console
            .then(|| VideoMonitor { socket: run_dir.join("graphics.sock") }),
    }
}

/// Zero in the options means absent.
fn some(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}
