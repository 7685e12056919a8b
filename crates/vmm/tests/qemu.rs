//! What only QEMU can show: confinement, boot files, memory, consoles, network cards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    time::Duration,
};

use coracle_vmm::{
    Accel, Boot, Device, ExitReason, Lock, MacAddress, MemoryBacking, MiB, Nic, NicSource, Pmem,
    User, Vm, VmConfig, Vmm, VmmError, accel, qemu::Qemu,
};
use support::{BOOT, Bench, Guest, Monitor, SOON, disk, eventually, id};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    time::{sleep, timeout},
};

const NOBODY: User = User { uid: 65_534, gid: 65_534 };

fn bench() -> Bench {
    Bench::new(Monitor::Qemu)
}

async fn refused(bench: &Bench, config: VmConfig) -> VmmError {
    let error = bench.vmm().launch(config).await.map(|_| ()).unwrap_err();
    bench.assert_clean();
    error
}

/// Waits until the guest has printed a word.
async fn printed(vm: &dyn Vm, word: &str) {
    let seen = timeout(BOOT, async {
        while !vm.console_tail().await.contains(word) {
            sleep(Duration::from_millis(50)).await;
        }
    });
    seen.await.unwrap_or_else(|_| panic!("the guest never printed {word}"));
}

#[tokio::test]
async fn the_monitor_has_no_rights_but_to_what_it_was_handed() {
    let bench = bench();
    std::fs::set_permissions(bench.dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut config = bench.config();
    config.user = Some(NOBODY);
    config.disks = vec![bench.disk("root", 0)];
    std::fs::set_permissions(bench.path("root.img"), PermissionsExt::from_mode(0o600)).unwrap();
    let vm = bench.vmm().launch(config).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.identity().pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().replace('\t', " ")
    };
    assert_eq!(field("Uid"), "65534 65534 65534 65534");
    assert_eq!(field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    vm.plug(disk(bench.disk("hot", 1))).await.unwrap();
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn without_qemu_the_package_is_named() {
    let bench = bench();
    let vmm = Qemu::new().with_program("qemu-system-of-nobody");
    let error = vmm.launch(bench.config()).await.map(|_| ()).unwrap_err();
    let expected = "qemu-system-of-nobody is not installed (Debian package qemu-system-x86)";
    assert_eq!(error.to_string(), expected);
    bench.assert_clean();
}

#[tokio::test]
async fn kvm_that_was_asked_for_is_had_or_explained() {
    let bench = bench();
    let mut config = bench.config();
    config.accel = Accel::Kvm;
    let launched = bench.vmm().launch(config).await;
    match launched {
        Ok(vm) => {
            assert!(accel::examine(None).is_usable());
            vm.kill().await.unwrap();
        }
        Err(error) => {
            assert!(!accel::examine(None).is_usable());
            assert!(matches!(&error, VmmError::NoKvm { .. }), "{error}");
            assert!(error.to_string().contains("--accel tcg"), "{error}");
        }
    }
    bench.assert_clean();
}

#[tokio::test]
async fn missing_and_broken_boot_files_are_named() {
    let bench = bench();
    let (cut, junk, empty) = (bench.path("cut"), bench.path("junk"), bench.path("empty"));
    let kernel = std::fs::read(support::kernel()).unwrap();
    std::fs::write(&cut, &kernel[..kernel.len() / 2]).unwrap();
    std::fs::write(&junk, "junk".repeat(1000)).unwrap();
    std::fs::write(&empty, "").unwrap();
    let good = support::kernel();
    let missing = PathBuf::from("/no/such/file");
    for (kernel, initrd, wanted) in [
        (&missing, None, "open kernel /no/such/file"),
        (&good, Some(&missing), "open initrd /no/such/file"),
        (&junk, None, "it is neither a bzImage nor an ELF file"),
        (&cut, None, "it is cut off"),
        (&good, Some(&empty), "it is empty"),
    ] {
        let mut config = bench.config();
        let (kernel, initrd) = (kernel.clone(), initrd.cloned());
        config.boot = Boot::Kernel { kernel, initrd, cmdline: String::new() };
        let error = refused(&bench, config).await.to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn too_little_memory_is_refused_with_the_least_that_boots() {
    let bench = bench();
    let boot = |size| {
        let mut config = bench.config();
        let cmdline = "console=ttyS0 quiet panic=-1 cryptomgr.notests".into();
        config.boot = Boot::Kernel { kernel: support::kernel(), initrd: None, cmdline };
        config.memory.size = size;
        config
    };
    let error = refused(&bench, boot(MiB(16))).await;
    let VmmError::MemoryTooSmall { least, .. } = error else { panic!("{error:?}") };
    // With the least it does boot, as far as one can without a root.
    let vm = bench.vmm().launch(boot(least)).await.unwrap();
    vm.resume().await.unwrap();
    let reason = timeout(BOOT, vm.wait()).await.unwrap();
    let ExitReason::Panic { console } = &reason else { panic!("{reason:?}") };
    assert!(console.contains("VFS: Unable to mount root"), "{console}");
}

#[tokio::test]
async fn what_qemu_says_before_it_gives_up_is_in_the_error() {
    let bench = bench();
    let mut config = bench.config();
    config.extra_arguments = vec!["-device".into(), "no-such-device".into()];
    let error = refused(&bench, config).await;
    let VmmError::Launch { reason: ExitReason::Failed { status: Some(1), stderr } } = &error else {
        panic!("{error:?}")
    };
    assert!(stderr.contains("no-such-device"), "{stderr}");
}

#[tokio::test]
async fn a_locked_instruction_of_an_only_processor_is_translated_as_one() {
    // `lock addw $0, (0)` where the processor begins, then `hlt`.
    let mut firmware = vec![0xf4; 64 << 10];
    firmware[0xfff0..0xfff6].copy_from_slice(&[0xf0, 0x83, 0x06, 0, 0, 0]);
    let bench = bench();
    std::fs::write(bench.path("firmware"), firmware).unwrap();
    let log = bench.path("translated");
    let word = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut config = bench.config();
    config.extra_arguments = vec!["-bios".into(), word(bench.path("firmware"))];
    config.extra_arguments.extend(["-d".into(), "op".into(), "-D".into(), word(log.clone())]);
    let vm = bench.vmm().launch(config).await.unwrap();
    vm.resume().await.unwrap();
    eventually("what follows the instruction is translated", || {
        std::fs::read_to_string(&log).is_ok_and(|ops| ops.contains("call hlt"))
    });
    // Else it is no barrier, and notifications of devices are lost.
    let ops = std::fs::read_to_string(&log).unwrap();
    assert!(ops.contains("atomic_add_fetch"), "{ops}");
    vm.kill().await.unwrap();
    vm.wait().await;
}

#[tokio::test]
async fn every_kind_of_memory_is_accepted() {
    let bench = bench();
    let kinds: [fn(&mut VmConfig); 5] = [
        |config| config.memory.backing = MemoryBacking::Shared,
        |config| config.memory.prealloc = true,
        |config| config.memory.reserve = false,
        |config| config.free_page_reporting = true,
        |config| {
            config.memory.size = MiB(3072);
            config.memory.low_mmio_gap = Some(MiB(2048));
            config.memory.high_mmio_gap = Some(MiB(16 << 10));
        },
    ];
    for choose in kinds {
        let mut config = bench.config();
        choose(&mut config);
        bench.vmm().launch(config).await.unwrap().kill().await.unwrap();
    }
}

#[tokio::test]
async fn memory_is_locked_or_the_limit_is_named() {
    let bench = bench();
    for lock in [Lock::Required, Lock::IfAllowed] {
        let mut config = bench.config();
        config.memory.lock = lock;
        match bench.vmm().launch(config).await {
            Ok(vm) => vm.kill().await.unwrap(),
            Err(VmmError::MemoryLock { needed, allowed }) => {
                assert!(lock == Lock::Required && needed > allowed);
            }
            Err(other) => panic!("{other}"),
        }
    }
    bench.assert_clean();
}

#[tokio::test]
async fn persistent_memory_must_be_open_to_the_user_of_the_vm() {
    let bench = bench();
    let path = bench.path("root.pmem");
    File::create(&path).unwrap().set_len(2 << 20).unwrap();
    for (mode, works) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let mut config = bench.config();
        config.user = Some(NOBODY);
        let file: OwnedFd = File::open(&path).unwrap().into();
        config.pmem = vec![Pmem { id: id("pmem0"), file, size: 2 << 20, read_only: true }];
        match bench.vmm().launch(config).await {
            Ok(vm) => {
                assert!(works);
                vm.kill().await.unwrap();
            }
            Err(error) => assert!(!works && error.to_string().contains("root.pmem"), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_screen_speaks_vnc_even_after_an_adoption() {
    let bench = bench();
    let mut config = bench.config();
    config.graphics = Some(bench.path("vnc.sock"));
    config.die_with_owner = false;
    config.user = Some(NOBODY);
    let mut vm = bench.vmm().launch(config).await.unwrap();
    for _ in 0..2 {
        let mut client = UnixStream::connect(bench.path("vnc.sock")).await.unwrap();
        let mut greeting = [0; 12];
        timeout(SOON, client.read_exact(&mut greeting)).await.unwrap().unwrap();
        assert_eq!(&greeting[..4], b"RFB ");
        let identity = vm.identity().clone();
        drop(vm);
        vm = bench.vmm().adopt(&identity).await.unwrap();
    }
    vm.kill().await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_console_reaches_the_person_who_dialled_and_the_exit_reason() {
    let bench = bench();
    let mut config = bench.config();
    config.console = Some(bench.path("console.sock"));
    config.memory.size = MiB(256);
    let facts = coracle_vmm::qemu::KernelFacts {
        engine: accel::Engine::Tcg,
        graphics: false,
        verbose: true,
        host_devices: false,
        tsc_khz: None,
    };
    let cmdline = coracle_vmm::qemu::kernel_arguments(&facts);
    config.boot = Boot::Kernel { kernel: support::kernel(), initrd: None, cmdline };
    let vm = bench.vmm().launch(config).await.unwrap();
    let mut console = UnixStream::connect(bench.path("console.sock")).await.unwrap();
    vm.resume().await.unwrap();
    let mut text = Vec::new();
    timeout(BOOT, console.read_to_end(&mut text)).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("Linux version") && text.contains("Kernel panic"), "{text}");
    let reason = vm.wait().await;
    assert!(matches!(&reason, ExitReason::Panic { .. }), "{reason:?}");
    bench.assert_clean();
}

#[tokio::test]
async fn a_network_card_comes_and_goes_in_a_running_guest() {
    let bench = bench();
    let vm = bench.boot(Guest::Idles).await;
    vm.resume().await.unwrap();
    printed(&*vm, "up").await;
    let name = format!("cv{}", std::process::id());
    for _ in 0..2 {
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        vm.plug(Device::Nic(Nic { id: id("eth0"), mac, source: NicSource::Tap(tap(&name)) }))
            .await
            .unwrap();
        vm.unplug(&id("eth0"), SOON).await.unwrap();
        eventually("the tap is gone", || !interface(&name).exists());
    }
    vm.plug(Device::SerialPort(bench.port("extra"))).await.unwrap();
    UnixStream::connect(bench.path("extra.sock")).await.unwrap();
    vm.unplug(&id("extra"), SOON).await.unwrap();
    vm.kill().await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn firmware_starts_a_kernel_through_its_efi_stub() {
    let bench = bench();
    let kernel = support::kernel().with_file_name("kernel");
    assert!(kernel.exists(), "{} is missing: run `make setup`", kernel.display());
    let mut config = bench.config();
    config.user = Some(NOBODY);
    config.memory.size = MiB(256);
    config.boot = Boot::Firmware {
        kernel,
        initrd: None,
        cmdline: "console=ttyS0 panic=-1 quiet cryptomgr.notests".into(),
    };
    let vm = bench.vmm().launch(config).await.unwrap();
    vm.resume().await.unwrap();
    let reason = timeout(BOOT, vm.wait()).await.unwrap();
    let ExitReason::Panic { console } = &reason else { panic!("{reason:?}") };
    assert!(console.contains("VFS: Unable to mount root"), "{console}");
    bench.assert_clean();
}

fn interface(name: &str) -> PathBuf {
    PathBuf::from("/sys/class/net").join(name)
}

/// Makes a tap device, which goes when its last descriptor is closed.
fn tap(name: &str) -> OwnedFd {
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = u16::try_from(flags).unwrap();
    (&mut request[16..18]).write_all(&flags.to_ne_bytes()).unwrap();
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    file.into()
}
