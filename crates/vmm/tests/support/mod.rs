//! What the tests of both monitors share: a bench with a directory of its own, guests that do one
//! thing, and eyes on the host.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use coracle_vmm::{
    Accel, Boot, Device, DeviceId, Disk, DiskFormat, DiskPlace, MiB, SerialPort, Vm, VmConfig, Vmm,
    effect::Effects, fake::FakeVmm, qemu::Qemu,
};
use uuid::Uuid;

/// Time for anything that must happen; generous, since tests share the machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Time for a guest to boot, under TCG beside other tests.
pub const BOOT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitor {
    Fake,
    Qemu,
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    PowersOff,
    Panics,
    Idles,
}

/// One monitor and a directory to run VMs in.
pub struct Bench {
    pub monitor: Monitor,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new(monitor: Monitor) -> Self {
        Self { monitor, dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn vmm(&self) -> Box<dyn Vmm> {
        self.vmm_with(Effects::default())
    }

    pub fn vmm_with(&self, effects: Effects) -> Box<dyn Vmm> {
        match self.monitor {
            Monitor::Fake => Box::new(FakeVmm::new(fake_program()).with_effects(effects)),
            Monitor::Qemu => Box::new(Qemu::new().with_effects(effects)),
        }
    }

    /// A VM without a guest, launched paused.
    pub fn config(&self) -> VmConfig {
        let mut config = VmConfig::new(Uuid::new_v4(), self.dir.path(), Boot::None);
        config.paused = true;
        config.accel = Accel::Tcg;
        config.memory.size = MiB(64);
        config.name = self.marker();
        config
    }

    pub async fn launch(&self) -> Box<dyn Vm> {
        self.vmm().launch(self.config()).await.unwrap()
    }

    /// Launches, paused, a guest that does one thing.
    pub async fn boot(&self, guest: Guest) -> Box<dyn Vm> {
        self.boot_as(guest, true).await
    }

    /// The same, for the guest to outlive its handle.
    pub async fn boot_to_stay(&self, guest: Guest) -> Box<dyn Vm> {
        self.boot_as(guest, false).await
    }

    async fn boot_as(&self, guest: Guest, die_with_owner: bool) -> Box<dyn Vm> {
        let mut config = self.config();
        config.die_with_owner = die_with_owner;
        match self.monitor {
            Monitor::Fake => {
                let script = match guest {
                    Guest::PowersOff => "echo up; exit 0",
                    Guest::Panics => "echo Kernel panic - not syncing: as asked; exit 1",
                    Guest::Idles => "echo up; exec sleep 1000",
                };
                let vmm = FakeVmm::new(fake_program()).with_guest("/bin/sh", &["-c", script]);
                vmm.launch(config).await.unwrap()
            }
            Monitor::Qemu => {
                config.boot = kernel_boot(self, guest);
                config.memory.size = MiB(256);
                Qemu::new().launch(config).await.unwrap()
            }
        }
    }

    /// A disk on a new file of one MiB.
    pub fn disk(&self, name: &str, lun: u32) -> Disk {
        let path = self.path(&format!("{name}.img"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.unwrap();
        file.set_len(1 << 20).unwrap();
        Disk {
            cache: coracle_vmm::DiskCache::default(),
            id: id(name),
            file: file.into(),
            format: DiskFormat::Raw,
            read_only: false,
            place: DiskPlace::Scsi { controller: 0, lun },
            serial: format!("S-{name}"),
        }
    }

    /// The same file, read-only.
    pub fn read_only_disk(&self, name: &str, lun: u32) -> Disk {
        let disk = self.disk(name, lun);
        let file: OwnedFd = File::open(self.path(&format!("{name}.img"))).unwrap().into();
        Disk { file, read_only: true, ..disk }
    }

    pub fn port(&self, name: &str) -> SerialPort {
        SerialPort {
            id: id(name),
            name: format!("coracle.{name}"),
            socket: self.path(&format!("{name}.sock")),
        }
    }

    /// The sockets there are in the directory.
    pub fn sockets(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".sock")).collect()
    }

    /// Asserts that nothing of any VM of this bench is on the host any more.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.sockets(), BTreeSet::new(), "sockets left behind");
        assert_eq!(self.processes(), Vec::<u32>::new(), "processes left behind");
    }

    /// Processes of this bench's VMs, told by the VM's name in their command line.
    pub fn processes(&self) -> Vec<u32> {
        processes_with(&self.marker())
    }

    /// What the VMs of this bench carry in their names.
    pub fn marker(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_string_lossy();
        name.replace(|c: char| !c.is_ascii_alphanumeric(), "")
    }
}

impl Drop for Bench {
    /// A test that fails leaves no VM behind, also none that was to stay.
    fn drop(&mut self) {
        for pid in self.processes() {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Living processes with this text in their command line, ourselves excepted.
pub fn processes_with(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        if pid != std::process::id() && words.contains(text) {
            found.push(pid);
        }
    }
    found
}

pub fn id(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub fn disk(disk: Disk) -> Device {
    Device::Disk(disk)
}

pub fn fake_program() -> &'static str {
    env!("CARGO_BIN_EXE_coracle-fake-vm")
}

/// Whether a process is there, be it dead and not yet reaped.
pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits until a condition holds.
#[track_caller]
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest kernel that `make setup` installs.
pub fn kernel() -> PathBuf {
    let root = std::env::var_os("CORACLE_ROOT").map_or("/var/lib/coracle".into(), PathBuf::from);
    let kernel = root.join("guest/vmlinux");
    assert!(kernel.exists(), "{} is missing: run `make setup`", kernel.display());
    kernel
}

fn kernel_boot(bench: &Bench, guest: Guest) -> Boot {
    let facts = coracle_vmm::qemu::KernelFacts {
        engine: coracle_vmm::accel::Engine::Tcg,
        graphics: false,
        verbose: false,
        host_devices: false,
        tsc_khz: coracle_vmm::qemu::host_tsc_khz(),
    };
    let cmdline = coracle_vmm::qemu::kernel_arguments(&facts);
    let initrd = match guest {
        // Without one the kernel finds no root.
        Guest::Panics => None,
        Guest::PowersOff => Some(initrd(bench, "echo up; poweroff -f")),
        Guest::Idles => Some(initrd(bench, "echo up; while :; do sleep 1; done")),
    };
    Boot::Kernel { kernel: kernel(), initrd, cmdline }
}

/// An initial RAM disk (cpio, format "newc") of a shell that runs one script.
fn initrd(bench: &Bench, script: &str) -> PathBuf {
    let shell = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let script = format!("#!/busybox sh\n/busybox --install -s /bin\nPATH=/bin\n{script}\n");
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("bin", 0o040_755, &[][..]),
        ("busybox", 0o100_755, &shell),
        ("init", 0o100_755, script.as_bytes()),
        ("TRAILER!!!", 0, &[]),
    ] {
        let fields = [0, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let path = bench.path("initrd.img");
    std::fs::write(&path, archive).unwrap();
    path
}
