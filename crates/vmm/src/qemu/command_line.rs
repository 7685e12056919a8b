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
    Boot, MiB, VmConfig,
    accel::Engine,
    machine::{CONSOLE_RING, CONSOLE_RING_SIZE},
};

/// What the launcher found out before the command line can be written.
pub(super) struct Facts<'a> {
    /// What runs guest code.
    pub(super) engine: Engine,
    /// Guest memory is to be locked, and may be.
    pub(super) lock: bool,
    /// The memory in common with the host has been made.
    pub(super) shared_memory: bool,
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
    line.devices(config, facts);
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
        let (accel, processor) = match facts.engine {
            Engine::Kvm => ("kvm", "host"),
            // Told of fast string moves, kernel and libc copy by `rep movsb`, which is
            // translated byte by byte: a pipe runs at half the speed.
            Engine::Tcg => ("tcg", "max,-erms"),
        };
        let features = config.cpu_features.iter().map(String::as_str);
        self.option("accel", accel);
        self.option(
            "cpu",
            std::iter::once(processor).chain(features).collect::<Vec<_>>().join(","),
        );
        let most = match facts.engine {
            Engine::Kvm => config.max_vcpus,
            // A machine that can only ever have one is run without memory barriers, and loses
            // notifications of its devices (docs/decisions/room-for-a-second-processor.md).
            Engine::Tcg => config.max_vcpus.max(2),
        };
        if most > config.vcpus {
            self.option("smp", format!("{},maxcpus={most}", config.vcpus));
        } else {
            self.option("smp", config.vcpus);
        }
    }

    fn memory(&mut self, config: &VmConfig, facts: &Facts<'_>) {
        let memory = &config.memory;
        let pmem: u64 = config.pmem.iter().map(|pmem| pmem.size).sum();
        if pmem == 0 && config.hotplug_memory == MiB(0) && config.max_extra_memory == MiB(0) {
            self.option("m", format!("{}M", memory.size.0));
        } else {
            // Room for each in the address space, with space to align it.
            let room = pmem.div_ceil(1 << 30) + config.pmem.len() as u64;
            let most =
                memory.size.0 + (room << 10) + config.hotplug_memory.0 + extra_room(config).0;
            let slots = config.pmem.len();
            self.option("m", format!("size={}M,slots={slots},maxmem={most}M", memory.size.0));
        }
        let mut backend = json!({
            "id": "vm.memory", "size": memory.size.bytes(),
            "prealloc": memory.prealloc, "reserve": memory.reserve,
        });
        device::back_memory(&mut backend, memory.backing);
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

    fn devices(&mut self, config: &VmConfig, facts: &Facts<'_>) {
        for (index, port) in config.serial_ports.iter().enumerate() {
            self.listening_socket(&device::port_chardev(&port.id), Descriptor::Port(index));
            let mut hub = device::port_hub(&port.id, None);
            if facts.engine == Engine::Tcg {
                // Who hands a message to QEMU's main thread waits for its lock soon after: an
                // emulated processor is faster when it passes the message on by itself.
                hub["ioeventfd"] = json!(false);
            }
            self.device(&hub);
            self.device(&device::port_device(port));
        }
        if let Some(memory) = config.shared_memory.as_ref().filter(|_| facts.shared_memory) {
            let path = self.path(Descriptor::SharedMemory);
            self.option("object", device::shared_memory(memory, &path));
            self.device(&device::shared_memory_device());
        }
        self.option("object", device::entropy(config));
        if config.io_thread {
            self.option("object", device::io_thread());
        }
        if config.max_extra_memory > MiB(0) {
            self.option("object", device::extra_memory(config));
            self.device(&device::extra_memory_device());
        }
        for number in 0..config.scsi_controllers {
            self.device(&device::scsi_controller(number, config.io_thread));
        }
        if config.hotplug_bridges == 0 {
            self.device(&device::rng("vm.rng", "pcie.0"));
        }
        for number in 0..config.hotplug_bridges {
            self.device(&device::bridge(number));
            // No firmware of ours gives bridges room, and the kernel gives one only as much as what
            // is behind it at boot asks for: so something is. A virtio device asks for a mebibyte
            // of each kind of memory, which is enough for 31 more.
            let id = if number == 0 { "vm.rng".to_owned() } else { format!("vm.rng{number}") };
            self.device(&device::rng(&id, &device::bridge_id(number)));
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
            let mut device = device::disk_device(disk);
            if config.io_thread && disk.place == crate::DiskPlace::Virtio {
                device["iothread"] = json!(device::IO_THREAD);
            }
            self.device(&device);
        }
    }

    fn pmem(&mut self, config: &VmConfig) {
        for (index, pmem) in config.pmem.iter().enumerate() {
            self.option("object", device::pmem_memory(pmem, &self.path(Descriptor::Pmem(index))));
            self.device(&device::pmem_device(&pmem.id, "pcie.0"));
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

/// Address space for memory that comes later, with space to align it.
fn extra_room(config: &VmConfig) -> MiB {
    const ALIGNMENT: u64 = 1024;
    match config.max_extra_memory {
        MiB(0) => MiB(0),
        MiB(most) => MiB(most.next_multiple_of(ALIGNMENT) + ALIGNMENT),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use uuid::Uuid;

    use super::*;
    use crate::{
        DeviceId, Disk, DiskFormat, DiskPlace, MemoryBacking, Pmem, SerialPort, SharedMemory,
        Throttle,
    };

    fn file() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn id(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    /// Numbers no process would give.
    fn number(descriptor: Descriptor) -> RawFd {
        let index = |index: usize| i32::try_from(index).unwrap();
        match descriptor {
            Descriptor::Control => 100,
            Descriptor::Console => 101,
            Descriptor::Kernel => 102,
            Descriptor::Initrd => 103,
            Descriptor::FirmwareCode => 104,
            Descriptor::FirmwareVariables => 105,
            Descriptor::SharedMemory => 106,
            Descriptor::Port(i) => 110 + index(i),
            Descriptor::Disk(i) => 120 + index(i),
            Descriptor::Pmem(i) => 130 + index(i),
        }
    }

    fn line(config: &VmConfig, engine: Engine, lock: bool) -> String {
        let disks = vec![FileKind::Regular; config.disks.len()];
        let shared_memory = config.shared_memory.is_some();
        let facts = Facts { engine, lock, shared_memory, disks: &disks, number: &number };
        let words = arguments(config, &facts).into_iter().map(|word| sorted(&word));
        words.collect::<Vec<_>>().join(" ").replace(" -", "\n-")
    }

    /// The same word; if it is JSON, with its keys in order whatever serde_json's features are.
    fn sorted(word: &str) -> String {
        fn sort(value: Value) -> Value {
            match value {
                Value::Object(map) => {
                    let mut entries: Vec<_> = map.into_iter().collect();
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                    entries.into_iter().map(|(key, value)| (key, sort(value))).collect()
                }
                other => other,
            }
        }
        serde_json::from_str::<Value>(word)
            .ok()
            .filter(Value::is_object)
            .map_or_else(|| word.to_owned(), |value| sort(value).to_string())
    }

    fn config(boot: Boot) -> VmConfig {
        let id = Uuid::from_u128(0x1234);
        VmConfig { name: "test".into(), ..VmConfig::new(id, "/run/x", boot) }
    }

    #[test]
    fn a_plain_vm_gets_the_lean_machine() {
        let mut config = config(Boot::Kernel {
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            cmdline: "quiet".into(),
        });
        config.serial_ports = vec![SerialPort {
            id: id("control"),
            name: "coracle.control".into(),
            socket: "/run/x/control.sock".into(),
        }];
        config.shared_memory = Some(SharedMemory { path: "/run/x/area".into(), bytes: 2 << 20 });
        assert_eq!(
            line(&config, Engine::Tcg, false),
            include_str!("../../tests/golden/plain.args").trim_end()
        );
    }

    #[test]
    fn a_vm_with_everything_gets_all_of_it() {
        let mut config = config(Boot::Firmware {
            kernel: "/k".into(),
            initrd: None,
            cmdline: "console=ttyS0".into(),
        });
        config.vcpus = 4;
        config.paused = true;
        config.memory.size = MiB(4096);
        config.memory.backing = MemoryBacking::Shared;
        config.memory.prealloc = true;
        config.memory.reserve = false;
        config.memory.low_mmio_gap = Some(MiB(1024));
        config.memory.high_mmio_gap = Some(MiB(65536));
        config.free_page_reporting = true;
        config.cpu_features = vec!["-vmx".into(), "+pku".into()];
        config.entropy = Some("/dev/urandom".into());
        config.io_thread = true;
        config.console = Some("/run/x/console".into());
        config.graphics = Some("/run/x/vnc".into());
        config.scsi_controllers = 2;
        config.hotplug_bridges = 2;
        config.throttle = Some(Throttle { iops: 500, bytes_per_second: 1 << 20 });
        config.disks = vec![Disk {
            id: id("root"),
            file: file(),
            format: DiskFormat::Qcow2,
            read_only: true,
            place: DiskPlace::Scsi { controller: 1, lun: 9 },
            serial: "S1".into(),
            cache: crate::DiskCache { direct: true, no_flush: false },
        }];
        config.pmem = vec![Pmem { id: id("pmem0"), file: file(), size: 3 << 30, read_only: true }];
        config.extra_arguments = vec!["-trace".into(), "nothing".into()];
        assert_eq!(
            line(&config, Engine::Kvm, true),
            include_str!("../../tests/golden/full.args").trim_end()
        );
    }

    #[test]
    fn a_comma_in_the_kernel_command_line_or_a_serial_number_stays_data() {
        let cmdline = "a=b,c,file=/etc/passwd".to_owned();
        let mut config = config(Boot::Kernel { kernel: "/k".into(), initrd: None, cmdline });
        config.disks = vec![Disk {
            id: id("root"),
            file: file(),
            format: DiskFormat::Raw,
            read_only: false,
            place: DiskPlace::Scsi { controller: 0, lun: 0 },
            serial: "x\",\"drive\":\"y".into(),
            cache: crate::DiskCache::default(),
        }];
        let disks = [FileKind::Regular];
        let facts = Facts {
            engine: Engine::Tcg,
            lock: false,
            shared_memory: false,
            disks: &disks,
            number: &number,
        };
        let words = arguments(&config, &facts);
        assert!(words.contains(&"a=b,c,file=/etc/passwd".to_owned()));
        let device = words.iter().find(|word| word.contains("scsi-hd")).unwrap();
        let device: Value = serde_json::from_str(device).unwrap();
        assert_eq!(device["serial"], "x\",\"drive\":\"y");
        assert_eq!(device["drive"], "root");
    }
}
