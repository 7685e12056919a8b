//! Devices in QEMU's words: the same JSON serves the command line and hot-plug, so that a disk
//! there from the start can be unplugged like any other. Pure, but for a look at what kind of
//! file a descriptor is.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};
use serde_json::{Value, json};

use crate::{
    DeviceId, Disk, DiskCache, DiskFormat, DiskPlace, MacAddress, MemoryBacking, PciSource, Pmem,
    SerialPort, SharedMemory, Throttle, VmConfig, VmmError, qmp::command::HotpluggableCpu,
};

/// The object that limits all disks together.
pub(crate) const THROTTLE: &str = "vm.throttle";

/// QEMU's block driver for a kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    BlockDevice,
}

/// What kind of file a disk's descriptor is.
pub(crate) fn file_kind(file: &OwnedFd) -> Result<FileKind, VmmError> {
    let stat = fstat(file).map_err(|error| VmmError::Host {
        operation: "examine",
        object: "the file of a disk".into(),
        source: error.into(),
    })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(FileKind::Regular),
        FileType::BlockDevice => Ok(FileKind::BlockDevice),
        other => Err(VmmError::Config(format!("a disk cannot be on a file of kind {other:?}"))),
    }
}

/// The block node of a disk, to be put on a descriptor set.
pub(crate) fn disk_node(
    disk: &Disk,
    kind: FileKind,
    throttled: bool,
) -> impl Fn(u64) -> Value + use<> {
    let (id, read_only, cache) = (disk.id.to_string(), disk.read_only, disk.cache);
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Vhd => "vpc",
        DiskFormat::Vhdx => "vhdx",
    };
    let driver = match kind {
        FileKind::Regular => "file",
        FileKind::BlockDevice => "host_device",
    };
    move |set| {
        let mut node = json!({
            "driver": format, "read-only": read_only, "discard": "unmap",
            "file": {
                "driver": driver, "filename": format!("/dev/fdset/{set}"),
                "read-only": read_only, "discard": "unmap",
            },
        });
        if format == "qcow2" {
            // A backing file named inside the image would be opened by its path.
            node["backing"] = Value::Null;
        }
        if throttled {
            node = json!({
                "driver": "throttle", "throttle-group": THROTTLE, "read-only": read_only,
                "discard": "unmap", "file": node,
            });
        }
        node["node-name"] = json!(id);
        if cache != DiskCache::default() {
            // What stands below it takes it from here.
            node["cache"] = json!({"direct": cache.direct, "no-flush": cache.no_flush});
        }
        node
    }
}

pub(crate) fn disk_device(disk: &Disk) -> Value {
    let (id, serial) = (disk.id.as_str(), &disk.serial);
    match disk.place {
        DiskPlace::Scsi { controller, lun } => json!({
            "driver": "scsi-hd", "id": id, "drive": id,
            "bus": format!("{}.0", scsi_controller_id(controller)),
            "channel": 0, "scsi-id": 0, "lun": lun, "serial": serial,
        }),
        DiskPlace::Virtio => json!({
            "driver": "virtio-blk-pci", "id": id, "drive": id, "bus": "pcie.0",
            "num-queues": 1, "serial": serial,
        }),
    }
}

fn scsi_controller_id(number: u32) -> String {
    format!("vm.scsi{number}")
}

/// A controller that does not tell the guest of units that come and go: the bridge does, in order.
pub(crate) fn scsi_controller(number: u32, io_thread: bool) -> Value {
    let id = scsi_controller_id(number);
    let mut controller =
        json!({"driver": "virtio-scsi-pci", "id": id, "num_queues": 1, "hotplug": false});
    if io_thread {
        controller["iothread"] = json!(IO_THREAD);
    }
    controller
}

pub(crate) fn throttle(limit: Throttle) -> Value {
    let mut limits = json!({});
    if limit.iops > 0 {
        limits["iops-total"] = json!(limit.iops);
    }
    if limit.bytes_per_second > 0 {
        limits["bps-total"] = json!(limit.bytes_per_second);
    }
    json!({"qom-type": "throttle-group", "id": THROTTLE, "limits": limits})
}

/// The device that gives memory and takes it back.
pub(crate) const EXTRA_MEMORY: &str = "vm.more";

/// What stands behind it: nothing of it is taken from the host before the guest has it.
pub(crate) fn extra_memory(config: &VmConfig) -> Value {
    let mut backend = json!({
        "id": format!("{EXTRA_MEMORY}.mem"), "size": config.max_extra_memory.bytes(),
        "reserve": false,
    });
    back_memory(&mut backend, config.memory.backing);
    backend
}

/// Makes a memory backend of this kind.
pub(crate) fn back_memory(backend: &mut Value, backing: MemoryBacking) {
    match backing {
        MemoryBacking::Anonymous => backend["qom-type"] = json!("memory-backend-ram"),
        MemoryBacking::Shared | MemoryBacking::HugePages => {
            backend["qom-type"] = json!("memory-backend-memfd");
            backend["share"] = json!(true);
        }
    }
    if backing == MemoryBacking::HugePages {
        backend["hugetlb"] = json!(true);
    }
}

/// Where the guest's entropy comes from.
pub(crate) fn entropy(config: &VmConfig) -> Value {
    match &config.entropy {
        None => json!({"qom-type": "rng-builtin", "id": "vm.entropy"}),
        Some(file) => json!({"qom-type": "rng-random", "id": "vm.entropy", "filename": file}),
    }
}

/// The thread that serves disks.
pub(crate) const IO_THREAD: &str = "vm.io";

pub(crate) fn io_thread() -> Value {
    json!({"qom-type": "iothread", "id": IO_THREAD})
}

pub(crate) fn extra_memory_device() -> Value {
    json!({
        "driver": "virtio-mem-pci", "id": EXTRA_MEMORY, "memdev": format!("{EXTRA_MEMORY}.mem"),
        "requested-size": 0, "bus": "pcie.0",
    })
}

/// A virtual processor in its place.
pub(crate) fn cpu_device(cpu: &HotpluggableCpu) -> Value {
    let mut device = json!({"driver": cpu.kind, "id": format!("vm.cpu{}", cpu.number())});
    if let (Value::Object(device), Value::Object(place)) = (&mut device, &cpu.props) {
        device.extend(place.clone());
    }
    device
}

/// A bridge with 32 places, one of them taken by a source of entropy.
pub(crate) fn bridge(number: u32) -> Value {
    json!({"driver": "pcie-pci-bridge", "id": bridge_id(number), "bus": "pcie.0"})
}

pub(crate) fn bridge_id(number: u32) -> String {
    format!("vm.hot{number}")
}

/// A source of entropy.
pub(crate) fn rng(id: &str, bus: &str) -> Value {
    json!({"driver": "virtio-rng-pci", "id": id, "rng": "vm.entropy", "bus": bus})
}

pub(crate) fn is_bridge(id: &str) -> bool {
    id.starts_with("vm.hot")
}

pub(crate) fn nic_backend(id: &DeviceId) -> String {
    format!("{id}.net")
}

/// What a guest sets in a card by a queue of its own. The host says what may come in and go out, a card has
/// one pair of queues and is never migrated; but a guest's kernel would ask for each of them, and wait.
const CONTROLS: [&str; 8] = [
    "ctrl_vq",
    "ctrl_rx",
    "ctrl_rx_extra",
    "ctrl_vlan",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
    "guest_announce",
    "mq",
];

pub(crate) fn nic_device(id: &DeviceId, mac: MacAddress, bus: &str, has_msi: bool) -> Value {
    let mut device = json!({
        "driver": "virtio-net-pci", "id": id.as_str(), "netdev": nic_backend(id),
        "mac": mac.to_string(), "bus": bus, "romfile": "",
    });
    for control in CONTROLS {
        device[control] = json!(false);
    }
    if !has_msi {
        device["vectors"] = json!(0);
    }
    device
}

/// The connection to the server of a device, sent before.
pub(crate) fn server_backend(id: &DeviceId) -> Value {
    let socket =
        json!({"addr": {"type": "fd", "data": {"str": port_chardev(id)}}, "server": false});
    json!({"id": port_chardev(id), "backend": {"type": "socket", "data": socket}})
}

/// The connection to a server that QEMU dials itself.
pub(crate) fn dialled_backend(id: &DeviceId, path: &str) -> Value {
    let socket = json!({"addr": {"type": "unix", "data": {"path": path}}, "server": false});
    json!({"id": port_chardev(id), "backend": {"type": "socket", "data": socket}})
}

pub(crate) fn share_device(share_id: &DeviceId, tag: &str, bus: &str) -> Value {
    json!({
        "driver": "vhost-user-fs-pci", "id": share_id.as_str(), "tag": tag,
        "chardev": port_chardev(share_id), "bus": bus,
    })
}

/// A PCI device, still without its bus.
pub(crate) fn pci_device(id: &DeviceId, source: &PciSource) -> Value {
    let (id, server) = (id.as_str(), port_chardev(id));
    match source {
        PciSource::Host(address) => {
            json!({"driver": "vfio-pci", "id": id, "host": address.to_string()})
        }
        PciSource::Mediated(folder) => {
            json!({"driver": "vfio-pci", "id": id, "sysfsdev": folder.to_string_lossy()})
        }
        PciSource::Teaching => json!({"driver": "edu", "id": id}),
        PciSource::Disk(_) => json!({
            "driver": "vhost-user-blk-pci", "id": id, "chardev": server, "num-queues": 1,
        }),
        // Servers need not know how to tell of changed units, and `vhost-device-scsi` refuses to begin.
        PciSource::Controller(_) => json!({
            "driver": "vhost-user-scsi-pci", "id": id, "chardev": server, "num_queues": 1,
            "param_change": false,
        }),
        // With that feature, one of many that are plugged in while the guest runs never wakes up.
        PciSource::Vsock(_) => json!({
            "driver": "vhost-user-vsock-pci", "id": id, "chardev": server, "event_idx": false,
        }),
    }
}

pub(crate) fn pmem_memory_id(id: &DeviceId) -> String {
    format!("{id}.mem")
}

/// The memory of a pmem device: a file, by a path that leads to a descriptor.
pub(crate) fn pmem_memory(pmem: &Pmem, path: &str) -> Value {
    json!({
        "qom-type": "memory-backend-file", "id": pmem_memory_id(&pmem.id), "size": pmem.size,
        "mem-path": path, "share": true, "readonly": pmem.read_only,
    })
}

pub(crate) fn pmem_device(id: &DeviceId, bus: &str) -> Value {
    json!({
        "driver": "virtio-pmem-pci", "id": id.as_str(), "memdev": pmem_memory_id(id), "bus": bus,
    })
}

/// The memory in common with the host: a file, by a path that leads to a descriptor.
pub(crate) fn shared_memory(memory: &SharedMemory, path: &str) -> Value {
    json!({
        "qom-type": "memory-backend-file", "id": "vm.area", "size": memory.bytes,
        "mem-path": path, "share": true,
    })
}

pub(crate) fn shared_memory_device() -> Value {
    json!({"driver": "ivshmem-plain", "id": "vm.shared", "memdev": "vm.area", "bus": "pcie.0"})
}

pub(crate) fn port_hub_id(id: &DeviceId) -> String {
    format!("{id}.hub")
}

/// A serial port's own controller: a stalled port must not hold up another.
pub(crate) fn port_hub(id: &DeviceId, bus: Option<&str>) -> Value {
    let bus = bus.unwrap_or("pcie.0");
    json!({"driver": "virtio-serial-pci", "id": port_hub_id(id), "max_ports": 2, "bus": bus})
}

pub(crate) fn port_chardev(id: &DeviceId) -> String {
    format!("{id}.chr")
}

/// The character device of a port plugged in later, on the listening socket sent before.
pub(crate) fn port_backend(id: &DeviceId) -> Value {
    let socket = json!({"addr": {"type": "fd", "data": {"str": port_chardev(id)}},
        "server": true, "wait": false});
    json!({"id": port_chardev(id), "backend": {"type": "socket", "data": socket}})
}

pub(crate) fn port_device(port: &SerialPort) -> Value {
    json!({
        "driver": "virtserialport", "id": port.id.as_str(), "name": port.name,
        "chardev": port_chardev(&port.id), "bus": format!("{}.0", port_hub_id(&port.id)), "nr": 1,
    })
}
