//! A sandbox's record as Kata's states (seed `persistapi`): what its reader sees.
//!
//! Only what is so is said: a member that tells of something we have not got is left at zero. What
//! Kata's schema has no place for stays in our own record.

use coracle_persist::driver::Containers;
use coracle_persist::model::{
    self, CURRENT_PERSIST_VERSION, ContainerState, HypervisorKind, SandboxState, StateText,
};
use coracle_uvm::options::ChannelBacking;

use crate::further::ContainerStage;
use crate::life::Stage;
use crate::plug::{Kind, ShareType};
use crate::record::{ContainerRecord, SandboxRecord};
use crate::settings::Tuning;

/// The states of a sandbox and its containers.
pub fn project(record: &SandboxRecord) -> (SandboxState, Containers) {
    let mut sandbox = SandboxState {
        persist_version: CURRENT_PERSIST_VERSION,
        state: state(record.stage),
        sandbox_container: record.name.clone(),
        ..SandboxState::default()
    };
    hypervisor(record, &mut sandbox);
    network(record, &mut sandbox);
    config(record, &mut sandbox);
    sandbox.devices = Some(devices(record));
    let mut containers = Containers::new();
    for (there, stage) in beings(record) {
        containers.insert(there.id.clone(), container(record, there, stage));
    }
    (sandbox, containers)
}

/// The containers there are, each with where it is in its life; one that is being made has nothing yet
/// that Kata's reader could be told of.
fn beings(record: &SandboxRecord) -> impl Iterator<Item = (&ContainerRecord, StateText)> {
    let own = record.container.iter().map(|there| {
        let stage = match (record.stage, there.pid) {
            (Stage::Created | Stage::Creating, _) | (Stage::Running, None) => StateText::Ready,
            (stage, _) => state(stage),
        };
        (there, stage)
    });
    let further = record.containers.values().filter_map(|further| {
        let stage = match further.stage() {
            ContainerStage::Creating => StateText::Ready,
            ContainerStage::Running => state(record.stage),
            ContainerStage::Exited => StateText::Stopped,
        };
        Some((further.there.as_ref()?, stage))
    });
    own.chain(further)
}

/// Kata has four words for it.
fn state(stage: Stage) -> StateText {
    match stage {
        Stage::Created | Stage::Creating => StateText::Ready,
        Stage::Running => StateText::Running,
        Stage::Paused => StateText::Paused,
        Stage::Stopping | Stage::Exited | Stage::Removing => StateText::Stopped,
    }
}

fn hypervisor(record: &SandboxRecord, sandbox: &mut SandboxState) {
    sandbox.hypervisor_state.kind = HypervisorKind::Qemu;
    let Some(vm) = &record.vm else { return };
    let identity = vm.identity();
    let state = &mut sandbox.hypervisor_state;
    state.pid = identity.pid.into();
    state.uuid = identity.id.to_string();
    let (processors, memory) = vm.hotplugged();
    let added = (0..processors).map(|n| model::CpuDevice { id: format!("cpu-{n}") });
    state.hotplugged_vcpus = Some(added.collect());
    state.hotplugged_memory = i64::try_from(memory).unwrap_or(i64::MAX);
    state.virtiofsd_pid = vm.servers().first().map_or(0, |server| server.pid.into());
    let taken = vm.disks().into_iter().map(|disk| {
        let index = i64::from(disk.controller) * 64 + i64::from(disk.lun);
        (model::TextKey(index), model::Present {})
    });
    state.block_index_map = Some(taken.collect());
    sandbox.agent_state.url =
        format!("unix://{}", identity.control_socket.with_file_name("vsock").display());
    sandbox.agent_state.proxy_pid = vm.keeper().map_or(0, |keeper| keeper.pid.into());
    let cgroup = identity.cgroup.as_ref();
    sandbox.cgroup_path = cgroup.map(|path| path.display().to_string()).unwrap_or_default();
}

fn network(record: &SandboxRecord, sandbox: &mut SandboxState) {
    let endpoints = record.networks.iter().flat_map(|network| network.persisted());
    sandbox.network.endpoints = Some(endpoints.collect());
    if let Some((path, made)) = record.networks.iter().find_map(|network| network.namespace()) {
        sandbox.network.net_ns_path = path.display().to_string();
        sandbox.network.net_ns_created = made;
    }
}

fn config(record: &SandboxRecord, sandbox: &mut SandboxState) {
    let spec = &record.order.sandbox;
    let config = &mut sandbox.config;
    config.hypervisor_type = HypervisorKind::Qemu;
    config.stateful = true;
    let vmm = &mut config.hypervisor_config;
    vmm.num_vcpus = spec.vcpus;
    vmm.default_max_vcpus = spec.max_vcpus.unwrap_or(spec.vcpus);
    vmm.memory_size = u32::try_from(spec.memory_mib).unwrap_or(u32::MAX);
    vmm.virtio_mem = spec.max_memory_mib.is_some();
    vmm.mem_prealloc = spec.needs_physical_memory();
    vmm.hypervisor_machine_type = "q35".to_owned();
    tuning(&spec.tuning, vmm);
    config.shm_size = spec.tuning.shm_bytes.unwrap_or(crate::oci::SHM_BYTES);
    config.sandbox_cgroup_only = spec.tuning.own_cgroup;
    config.disable_guest_seccomp = true;
    vmm.block_device_driver = "virtio-scsi".to_owned();
    vmm.shared_fs = "virtio-fs".to_owned();
    vmm.kernel_path =
        spec.kernel.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let of = |(there, _): (&ContainerRecord, _)| model::ContainerConfig {
        id: there.id.clone(),
        annotations: Some(Default::default()),
        root_fs: match record.containers.get(&there.id) {
            Some(further) => further.order.rootfs.shown(),
            None => spec.rootfs.shown(),
        },
        ..model::ContainerConfig::default()
    };
    config.container_configs = Some(beings(record).map(of).collect());
    match record.networks.iter().find_map(|network| network.namespace()) {
        Some((path, _)) => config.network_config.net_ns_path = path.display().to_string(),
        None => config.network_config.disable_new_net_ns = true,
    }
}

fn tuning(tuning: &Tuning, vmm: &mut model::HypervisorConfig) {
    vmm.cpu_features = tuning.cpu_features.join(",");
    vmm.entropy_source = match &tuning.entropy_source {
        Some(file) => file.display().to_string(),
        None => String::new(),
    };
    let virtiofs = &tuning.virtiofs;
    vmm.virtio_fs_daemon =
        virtiofs.program.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    vmm.virtio_fs_cache = virtiofs.cache.name().to_owned();
    vmm.virtio_fs_extra_args =
        Some(virtiofs.extra_args.clone()).filter(|arguments| !arguments.is_empty());
    vmm.enable_io_threads = tuning.io_thread;
    vmm.huge_pages = tuning.huge_pages;
    vmm.mlock = tuning.lock_memory;
    vmm.use_vsock = match tuning.channel {
        ChannelBacking::VirtioSerial => false,
        ChannelBacking::Vsock { .. } => true,
    };
    vmm.disable_block_device_use = tuning.no_disks;
    vmm.block_device_cache_direct = tuning.disk_cache.direct;
    vmm.block_device_cache_noflush = tuning.disk_cache.no_flush;
    vmm.block_device_cache_set = vmm.block_device_cache_direct || vmm.block_device_cache_noflush;
}

/// Host devices and images; a share is a mount and no device.
fn devices(record: &SandboxRecord) -> Vec<model::DeviceState> {
    let plugs = record.plugs.iter().filter(|plug| plug.is_there());
    let device = |plug: &crate::plug::SavedPlug| {
        let spec = &plug.plugged.spec;
        let mut device = model::DeviceState {
            id: device_id(plug.number()),
            ref_count: u64::from(spec.destination.is_some()),
            attach_count: 1,
            ..model::DeviceState::default()
        };
        match spec.kind {
            Kind::Disk | Kind::Pmem => {
                device.kind = model::DeviceKind::Block;
                device.dev_type = model::NodeKind::Block;
                device.block_drive = Some(model::BlockDrive {
                    file: spec.source.clone(),
                    format: spec.format.clone().unwrap_or_else(|| "raw".to_owned()),
                    id: format!("drive-{}", device_id(plug.number())),
                    scsi_addr: plug.plugged.slot.clone().unwrap_or_default(),
                    pmem: spec.kind == Kind::Pmem,
                    ..model::BlockDrive::default()
                });
            }
            Kind::Device => {
                device.kind = match spec.source.split_once(':').map(|(kind, _)| kind) {
                    Some("vhost-user-blk") => model::DeviceKind::VhostUserBlk,
                    Some("vhost-user-scsi") => model::DeviceKind::VhostUserScsi,
                    Some("emulated") => return None,
                    Some(_) | None => model::DeviceKind::Vfio,
                };
                if device.kind == model::DeviceKind::Vfio {
                    device.vfio_devs = vec![Some(model::VfioDev {
                        id: device.id.clone(),
                        kind: model::VfioKind::Normal,
                        bdf: spec.source.clone(),
                        ..model::VfioDev::default()
                    })];
                } else {
                    device.vhost_user_dev = Some(model::VhostUserDeviceAttrs {
                        dev_id: device.id.clone(),
                        socket_path: spec.source.split_once(':').unwrap_or_default().1.to_owned(),
                        kind: device.kind.clone(),
                        pci_addr: plug.plugged.slot.clone().unwrap_or_default(),
                        ..model::VhostUserDeviceAttrs::default()
                    });
                }
            }
            Kind::Share | Kind::Pipe => return None,
        }
        Some(device)
    };
    plugs.filter_map(device).collect()
}

fn device_id(number: u64) -> String {
    format!("{number:016x}")
}

fn container(record: &SandboxRecord, there: &ContainerRecord, stage: StateText) -> ContainerState {
    let mount = |plug: &crate::plug::SavedPlug| {
        let spec = &plug.plugged.spec;
        let destination = spec.destination.clone()?;
        let kind = match (spec.kind, spec.share_type) {
            (Kind::Share, ShareType::VirtioFs) => "virtiofs",
            (Kind::Share, ShareType::Plan9) => "9p",
            (Kind::Disk | Kind::Pmem | Kind::Pipe | Kind::Device, _) => "bind",
        };
        let is_device = matches!(spec.kind, Kind::Disk | Kind::Pmem | Kind::Device);
        Some(model::Mount {
            source: spec.source.clone(),
            destination,
            kind: kind.to_owned(),
            options: Some(vec![if spec.read_only { "ro" } else { "rw" }.to_owned()]),
            read_only: spec.read_only,
            block_device_id: if is_device { device_id(plug.number()) } else { String::new() },
            ..model::Mount::default()
        })
    };
    let plugs = || record.plugs.iter().filter(|plug| plug.is_there());
    let map = |plug: &crate::plug::SavedPlug| {
        let path =
            plug.plugged.spec.destination.as_ref().filter(|path| path.starts_with("/dev/"))?;
        Some(model::DeviceMap {
            id: device_id(plug.number()),
            container_path: path.clone(),
            ..model::DeviceMap::default()
        })
    };
    ContainerState {
        state: stage,
        rootfs: model::RootfsState { block_device_id: String::new(), fs_type: "erofs".to_owned() },
        device_maps: Some(plugs().filter_map(map).collect()),
        mounts: Some(plugs().filter_map(mount).collect()),
        process: model::Process {
            token: there.id.clone(),
            pid: record.monitor.map_or(0, |monitor| monitor.pid.into()),
            start_time: model::Time::from_text(&record.created).unwrap_or_default(),
        },
        bundle_path: there.bundle.clone(),
        ..ContainerState::default()
    }
}
