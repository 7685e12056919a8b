//! From a VM's configuration to QEMU's command line. Pure: the same input gives the same words.
//!
//! The machine is a q35 with everything off that a container's VM has no use for. Whatever is a
//! file or a socket appears as the number of a descriptor that QEMU inherits.

use std::os::fd::RawFd;

use serde_json::{Value, json};

use super::{
    device::{self, FileKind},
    launch::Descriptor,
};
use crate::{
    Boot, MemoryBacking, MiB, VmConfig,
    accel::Engine,
    machine::{CONSOLE_RING, CONSOLE_RING_SIZE},
};

/// What the launcher found out before the command line can be written.
pub(super) struct Facts<'a> {
    /// What runs guest code.
    pub(super) engine: Engine,
    /// Guest memory is to be locked, and may be.
    pub(super) lock: bool,
    /// What the files of the disks are, in the order of the configuration.
    pub(super) disks: &'a [FileKind],
    /// The number of a descriptor.
    pub(super) number: &'a dyn Fn(Descriptor) -> RawFd,
}

/// QEMU's arguments.
pub(super) fn arguments(config: &VmConfig, facts: &Facts<'_>) -> Vec<String> {
    let mut line = Line { words: Vec::new(), number: facts.number };
    line.machine(config, facts);
    line.memory(config, facts);
    line.boot(config);
    line.control_and_consoles(config);
    line.devices(config);
    line.disks(config, facts);
    line.pmem(config);
    line.confinement(config);
    line.words.extend(config.extra_arguments.iter().cloned());
    line.words
}

struct Line<'a> {
    words: Vec<String>,
    number: &'a dyn Fn(Descriptor) -> RawFd,
}

impl Line<'_> {
    fn flag(&mut self, name: &str) {
        self.words.push(format!("-{name}"));
    }

    fn option(&mut self, name: &str, value: impl ToString) {
        self.flag(name);
        self.words.push(value.to_string());
    }

    fn device(&mut self, device: &Value) {
        self.option("device", device);
    }

    /// The path by which a process opens what it inherited.
    fn path(&self, descriptor: Descriptor) -> String {
        format!("/proc/self/fd/{}", (self.number)(descriptor))
    }

    fn machine(&mut self, config: &VmConfig, facts: &Facts<'_>) {
        self.option("name", &config.name);
        self.option("uuid", config.id);
        self.flag("nodefaults");
        self.flag("no-user-config");
        let mut machine = "q35,smm=off,hpet=off,usb=off,sata=off,vmport=off,smbus=off".to_owned();
        machine.push_str(",memory-backend=vm.memory");
        if let Some(MiB(gap)) = config.memory.low_mmio_gap {
            machine.push_str(&format!(",max-ram-below-4g={}M", 4096_u64.saturating_sub(gap)));
        }
        if let Boot::Firmware { .. } = config.boot {
            machine.push_str(",pflash0=vm.code,pflash1=vm.vars");
        }
        self.option("machine", machine);
        if let Some(MiB(gap)) = config.memory.high_mmio_gap {
            self.option("global", format!("q35-pcihost.pci-hole64-size={gap}M"));
        }
        match facts.engine {
            Engine::Kvm => {
                self.option("accel", "kvm");
                self.option("cpu", "host");
            }
            Engine::Tcg => {
                self.option("accel", "tcg");
                self.option("cpu", "max");
            }
        }
        self.option("smp", config.vcpus);
    }

    fn memory(&mut self, config: &VmConfig, facts: &Facts<'_>) {
        let memory = &config.memory;
        let pmem: u64 = config.pmem.iter().map(|pmem| pmem.size).sum();
        if pmem == 0 {
            self.option("m", format!("{}M", memory.size.0));
        } else {
            // Room for each in the address space, with space to align it.
            let room = pmem.div_ceil(1 << 30) + config.pmem.len() as u64;
            let most = memory.size.0 + (room << 10);
            let slots = config.pmem.len();
            self.option("m", format!("size={}M,slots={slots},maxmem={most}M", memory.size.0));
        }
        let mut backend = json!({
            "id": "vm.memory", "size": memory.size.bytes(),
            "prealloc": memory.prealloc, "reserve": memory.reserve,
        });
        match memory.backing {
            MemoryBacking::Anonymous => backend["qom-type"] = json!("memory-backend-ram"),
            MemoryBacking::Shared => {
                backend["qom-type"] = json!("memory-backend-memfd");
                backend["share"] = json!(true);
            }
        }
        self.option("object", backend);
        if facts.lock {
            self.option("overcommit", "mem-lock=on");
        }
        if config.free_page_reporting {
            self.device(&json!({"driver": "virtio-balloon-pci", "id": "vm.balloon",
                "free-page-reporting": true}));
        }
    }

    fn boot(&mut self, config: &VmConfig) {
        let (initrd, cmdline) = match &config.boot {
            Boot::None => return self.option("bios", "qboot.rom"),
            Boot::Kernel { initrd, cmdline, .. } => {
                // A screen needs the text modes of the full firmware.
                if config.graphics.is_none() {
                    self.option("bios", "qboot.rom");
                }
                (initrd, cmdline)
            }
            Boot::Firmware { initrd, cmdline, .. } => {
                for (node, descriptor, read_only) in [
                    ("vm.code", Descriptor::FirmwareCode, true),
                    ("vm.vars", Descriptor::FirmwareVariables, false),
                ] {
                    let set = self.descriptor_set(descriptor, node);
                    let file = json!({"driver": "file", "read-only": read_only,
                        "filename": format!("/dev/fdset/{set}")});
                    let node = json!({"driver": "raw", "node-name": node,
                        "read-only": read_only, "file": file});
                    self.option("blockdev", node);
                }
                (initrd, cmdline)
            }
        };
        self.option("kernel", self.path(Descriptor::Kernel));
        if initrd.is_some() {
            self.option("initrd", self.path(Descriptor::Initrd));
        }
        self.option("append", cmdline);
    }

    fn control_and_consoles(&mut self, config: &VmConfig) {
        self.listening_socket("vm.qmp", Descriptor::Control);
        self.option("mon", "chardev=vm.qmp,mode=control");
        // A kernel has one serial console only, so it is either the socket or the ring.
        if config.console.is_some() {
            self.listening_socket("vm.tty", Descriptor::Console);
            self.option("serial", "chardev:vm.tty");
        } else {
            self.option("chardev", format!("ringbuf,id={CONSOLE_RING},size={CONSOLE_RING_SIZE}"));
            self.option("serial", format!("chardev:{CONSOLE_RING}"));
        }
        if config.graphics.is_some() {
            self.device(&json!({"driver": "VGA", "id": "vm.screen"}));
            // It listens nowhere: clients are handed to it over the control socket.
            self.option("display", "vnc=none");
        } else {
            self.option("display", "none");
        }
    }

    fn devices(&mut self, config: &VmConfig) {
        for (index, port) in config.serial_ports.iter().enumerate() {
            self.listening_socket(&device::port_chardev(&port.id), Descriptor::Port(index));
            self.device(&device::port_hub(&port.id, None));
            self.device(&device::port_device(port));
        }
        self.option("object", json!({"qom-type": "rng-builtin", "id": "vm.entropy"}));
        self.device(&json!({"driver": "virtio-rng-pci", "id": "vm.rng", "rng": "vm.entropy"}));
        for number in 0..config.scsi_controllers {
            self.device(&device::scsi_controller(number));
        }
        for number in 0..config.hotplug_bridges {
            self.device(&device::bridge(number));
        }
    }

    fn disks(&mut self, config: &VmConfig, facts: &Facts<'_>) {
        if let Some(limit) = config.throttle {
            self.option("object", device::throttle(limit));
        }
        for (index, (disk, kind)) in config.disks.iter().zip(facts.disks).enumerate() {
            let set = self.descriptor_set(Descriptor::Disk(index), disk.id.as_str());
            let node = device::disk_node(disk, *kind, config.throttle.is_some());
            self.option("blockdev", node(set));
            self.device(&device::disk_device(disk));
        }
    }

    fn pmem(&mut self, config: &VmConfig) {
        for (index, pmem) in config.pmem.iter().enumerate() {
            let backend = format!("{}.mem", pmem.id);
            self.option(
                "object",
                json!({
                    "qom-type": "memory-backend-file", "id": backend, "size": pmem.size,
                    "mem-path": self.path(Descriptor::Pmem(index)),
                    "share": true, "readonly": pmem.read_only,
                }),
            );
            self.device(&json!({"driver": "virtio-pmem-pci", "id": pmem.id.as_str(),
                "memdev": backend}));
        }
    }

    fn confinement(&mut self, config: &VmConfig) {
        // A guest that ends leaves its monitor paused, so that its console can still be read.
        self.option("action", "reboot=shutdown,shutdown=pause,panic=pause");
        let denied = "obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        self.option("sandbox", format!("on,{denied}"));
        if config.paused {
            self.flag("S");
        }
    }

    fn listening_socket(&mut self, id: &str, descriptor: Descriptor) {
        let number = (self.number)(descriptor);
        self.option("chardev", format!("socket,id={id},fd={number},server=on,wait=off"));
    }

    /// Puts a descriptor into a set of its own, noted with what it is for. Sets are numbered by
    /// their descriptors, which are unique.
    fn descriptor_set(&mut self, descriptor: Descriptor, note: &str) -> u64 {
        let number = (self.number)(descriptor);
        self.option("add-fd", format!("fd={number},set={number},opaque={note}"));
        u64::try_from(number).unwrap_or_default()
    }
}
