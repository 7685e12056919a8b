//! From the description to what the machine monitor takes. Opens the files it names, nothing more.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coracle_bridge::channel::{AREA_BYTES, CONTROL_PORT, STREAMS_PORT};
use coracle_vmm as vmm;
use coracle_vmm::{
    DeviceId, Disk, DiskCache, DiskFormat, DiskPlace, Lock, MemoryBacking, MiB, SerialPort,
    SharedMemory, Throttle,
};
use uuid::Uuid;

use super::{Chipset, DescriptionError, Memory, PmemDevice, VirtualPmem, VmDescription};
use crate::options::{ColdDisk, OwnCgroup};

/// What the description does not say because it is not the user's to change.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The machine's UUID.
    pub id: Uuid,
    /// The VM's id, which processes and folders are named after.
    pub name: &'a str,
    /// The run folder, which exists.
    pub run_dir: &'a Path,
    /// The channel's sockets.
    pub control_socket: PathBuf,
    /// The other one.
    pub streams_socket: PathBuf,
    /// Where the file of their area is made, if they have one.
    pub area: Option<PathBuf>,
    /// Disks that are there from power-on.
    pub cold_disks: &'a [ColdDisk],
    /// The user the VM runs as.
    pub user: Option<vmm::User>,
    /// The VM dies with this process.
    pub die_with_owner: bool,
    /// The control group, if one is wanted even without limits.
    pub cgroup: Option<&'a OwnCgroup>,
    /// What the host may keep of disks in memory.
    pub disk_cache: DiskCache,
}

const DEFAULT_MEMORY: MiB = MiB(1024);
const ALL_OF_IT: u32 = 100_000;
/// What a fixed VHD has at its end.
const VHD_FOOTER_BYTES: u64 = 512;

/// The configuration of the VM, launched paused: power-on is a step of its own.
///
/// # Errors
/// A description that contradicts itself, or files that cannot be opened.
pub fn lower(
    description: &VmDescription,
    around: &Surroundings<'_>,
) -> Result<vmm::VmConfig, DescriptionError> {
    let machine = &description.virtual_machine;
    if machine.stop_on_reset == Some(false) {
        return Err(DescriptionError::StopOnReset);
    }
    let topology = &machine.compute_topology;
    let devices = &machine.devices;
    let controllers = numbered(devices.scsi.keys(), "SCSI controllers", 4)?;
    numbered(devices.com_ports.keys(), "serial ports", 1)?;
    let vcpus = topology.processor.count.filter(|count| *count > 0).unwrap_or(1);

    let mut config = vmm::VmConfig::new(around.id, around.run_dir, boot(&machine.chipset)?);
    config.name = around.name.replace('@', "-");
    config.paused = true;
    config.vcpus = vcpus;
    config.memory = memory(&topology.memory, description.coracle.lock_memory)?;
    if description.coracle.share_memory {
        config.memory.backing = MemoryBacking::Shared;
    }
    if description.coracle.huge_pages {
        config.memory.backing = MemoryBacking::HugePages;
    }
    config.cpu_features.clone_from(&description.coracle.cpu_features);
    config.entropy.clone_from(&description.coracle.entropy_source);
    config.io_thread = description.coracle.io_thread;
    config.free_page_reporting = topology.memory.enable_cold_discard_hint.unwrap_or(false);
    config.accel = description.coracle.accelerator;
    config.serial_ports = serial_ports(around)?;
    config.shared_memory = around.area.clone().map(shared_memory);
    config.scsi_controllers = controllers;
    config.disks = disks(around.cold_disks, around.disk_cache)?;
    config.pmem = devices.virtual_pmem.as_ref().map_or(Ok(Vec::new()), pmem)?;
    config.max_vcpus = description.coracle.max_processors.max(vcpus);
    let extra = description.coracle.max_memory_in_mb.saturating_sub(config.memory.size.0);
    config.max_extra_memory = MiB(extra.next_multiple_of(2));
    config.hotplug_memory = devices.virtual_pmem.as_ref().map_or(MiB(0), room_for_pmem);
    config.throttle = machine.storage_qos.as_ref().and_then(|qos| {
        let (iops, bytes_per_second) =
            (qos.iops_maximum.unwrap_or(0), qos.bandwidth_maximum.unwrap_or(0));
        (iops > 0 || bytes_per_second > 0).then_some(Throttle { iops, bytes_per_second })
    });
    config.console = devices.com_ports.get(&0).map(|port| port.named_pipe.clone());
    config.graphics = devices.video_monitor.as_ref().map(|monitor| monitor.socket.clone());
    config.cgroup = cgroup(around, vcpus, topology.processor.limit, topology.processor.weight);
    config.user = around.user;
    config.die_with_owner = around.die_with_owner;
    config.extra_arguments.clone_from(&description.coracle.monitor_arguments);
    Ok(config)
}

fn boot(chipset: &Chipset) -> Result<vmm::Boot, DescriptionError> {
    match (chipset.linux_kernel_direct.clone(), chipset.uefi.clone()) {
        (Some(k), None) => Ok(vmm::Boot::Kernel {
            kernel: k.kernel_file_path,
            initrd: k.init_rd_path,
            cmdline: k.kernel_cmd_line,
        }),
        (None, Some(k)) => Ok(vmm::Boot::Firmware {
            kernel: k.kernel_file_path,
            initrd: k.init_rd_path,
            cmdline: k.kernel_cmd_line,
        }),
        (None, None) | (Some(_), Some(_)) => Err(DescriptionError::Chipset),
    }
}

/// The three backings: virtual, virtual with deferred commit, physical.
fn memory(memory: &Memory, must_lock: bool) -> Result<vmm::Memory, DescriptionError> {
    let overcommit = memory.allow_overcommit.unwrap_or(false);
    let deferred = memory.enable_deferred_commit.unwrap_or(false);
    if deferred && !overcommit {
        return Err(DescriptionError::DeferredCommitOnPhysical);
    }
    if let Some(base) = memory.high_mmio_base_in_mb.filter(|base| *base > 0) {
        tracing::warn!(base, "HighMmioBaseInMB is ignored: QEMU puts the hole above the memory");
    }
    let mib = |value: Option<u64>| value.filter(|value| *value > 0).map(MiB);
    Ok(vmm::Memory {
        size: mib(memory.size_in_mb).unwrap_or(DEFAULT_MEMORY),
        backing: MemoryBacking::Anonymous,
        prealloc: !overcommit,
        lock: match (must_lock, overcommit) {
            (true, _) => Lock::Required,
            (false, false) => Lock::IfAllowed,
            (false, true) => Lock::No,
        },
        reserve: !deferred,
        low_mmio_gap: mib(memory.low_mmio_gap_in_mb),
        high_mmio_gap: mib(memory.high_mmio_gap_in_mb),
    })
}

fn serial_ports(around: &Surroundings<'_>) -> Result<Vec<SerialPort>, DescriptionError> {
    let ports = [
        ("control", CONTROL_PORT, &around.control_socket),
        ("streams", STREAMS_PORT, &around.streams_socket),
    ];
    let port = |(id, name, socket): (&str, &str, &PathBuf)| {
        Ok(SerialPort { id: device_id(id)?, name: name.to_owned(), socket: socket.clone() })
    };
    ports.into_iter().map(port).collect()
}

fn shared_memory(path: PathBuf) -> SharedMemory {
    SharedMemory { path, bytes: AREA_BYTES as u64 }
}

/// Disks that are there from power-on hang on the PCI bus, where the guest has them soonest.
fn disks(cold: &[ColdDisk], cache: DiskCache) -> Result<Vec<Disk>, DescriptionError> {
    (0u32..)
        .zip(cold)
        .map(|(n, disk)| {
            let failed = |source| DescriptionError::Disk { serial: disk.serial.clone(), source };
            Ok(Disk {
                id: device_id(&format!("cold-{n}"))?,
                file: disk.file.try_clone().map_err(failed)?,
                format: DiskFormat::Raw,
                read_only: disk.read_only,
                place: DiskPlace::Virtio,
                serial: disk.serial.clone(),
                cache,
            })
        })
        .collect()
}

fn pmem(section: &VirtualPmem) -> Result<Vec<vmm::Pmem>, DescriptionError> {
    numbered(section.devices.keys(), "PMEM devices", section.maximum_count)?;
    let device = |(number, device): (&u32, &PmemDevice)| {
        let (file, size) = open_pmem(device, section.maximum_size_bytes)?;
        let id = device_id(&format!("pmem{number}"))?;
        Ok(vmm::Pmem { id, file, size, read_only: device.read_only })
    };
    section.devices.iter().map(device).collect()
}

/// Room in the address space for devices that are still to come, each with space to align it.
fn room_for_pmem(section: &VirtualPmem) -> MiB {
    const ALIGNMENT: u64 = 1024;
    let there = u32::try_from(section.devices.len()).unwrap_or(u32::MAX);
    let to_come = u64::from(section.maximum_count.saturating_sub(there));
    MiB(to_come.saturating_mul((section.maximum_size_bytes >> 20).saturating_add(ALIGNMENT)))
}

fn open_pmem(device: &PmemDevice, limit: u64) -> Result<(OwnedFd, u64), DescriptionError> {
    let path = &device.host_path;
    let failed = |source| DescriptionError::PmemOpen { path: path.clone(), source };
    let file = File::options().read(true).write(!device.read_only).open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let pages = if size % 4096 == VHD_FOOTER_BYTES { size - VHD_FOOTER_BYTES } else { size };
    if pages == 0 || !pages.is_multiple_of(4096) || pages > limit {
        return Err(DescriptionError::PmemSize { path: path.clone(), size, limit });
    }
    Ok((file.into(), pages))
}

fn cgroup(
    around: &Surroundings<'_>,
    vcpus: u32,
    limit: Option<u32>,
    weight: Option<u32>,
) -> Option<vmm::Cgroup> {
    let limit = limit.filter(|limit| (1..ALL_OF_IT).contains(limit));
    let weight = weight.filter(|weight| *weight > 0);
    if around.cgroup.is_none() && limit.is_none() && weight.is_none() {
        return None;
    }
    // 100000 is all of every processor, 1000 thousandths each.
    let millis = |limit: u32| (u64::from(vcpus) * u64::from(limit) / 100).max(1);
    Some(vmm::Cgroup {
        path: match around.cgroup {
            Some(own) => own.path.clone(),
            None => Path::new("coracle").join(around.name),
        },
        cpu_millis: limit.map(|limit| u32::try_from(millis(limit)).unwrap_or(u32::MAX)),
        cpu_weight: weight,
        is_optional: around.cgroup.is_none_or(|own| !own.is_required)
            && limit.is_none()
            && weight.is_none(),
    })
}

/// How many there are, if they are numbered from 0 without a gap and within the limit.
fn numbered<'a>(
    numbers: impl Iterator<Item = &'a u32>,
    kind: &'static str,
    limit: u32,
) -> Result<u32, DescriptionError> {
    let mut count = 0;
    for number in numbers {
        if *number != count || count >= limit {
            return Err(DescriptionError::Numbers { kind, limit });
        }
        count += 1;
    }
    Ok(count)
}

fn device_id(name: &str) -> Result<DeviceId, DescriptionError> {
    DeviceId::new(name).map_err(DescriptionError::DeviceName)
}
