//! What every monitor must do, run unchanged on QEMU and on the fake.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use coracle_vmm::{
    Cgroup, Device, DiskPlace, ExitReason, PciDevice, PciSource, Throttle, Vm, VmConfig, VmEvent,
    VmIdentity, VmStatus, VmmError,
    effect::{Effects, Interruption},
};
use support::{BOOT, Bench, Guest, Monitor, SOON, disk, eventually, exists, id};
use tokio::{sync::broadcast::Receiver, time::timeout};
use uuid::Uuid;

macro_rules! on_every_monitor {
    ($($case:ident)*) => {
        mod on_the_fake {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Bench::new(super::Monitor::Fake)).await;
            })*
        }
        mod on_qemu {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Bench::new(super::Monitor::Qemu)).await;
            })*
        }
    };
}

on_every_monitor! {
    a_vm_launched_paused_runs_when_it_is_resumed
    pausing_and_resuming_twice_changes_nothing
    a_disk_is_plugged_in_and_out_again
    a_disk_there_from_the_start_can_be_unplugged
    disks_share_a_throttle
    an_id_that_is_taken_is_refused
    a_place_that_is_taken_is_refused_and_nothing_stays
    a_controller_that_does_not_exist_is_refused
    of_two_who_plug_the_same_id_at_once_one_succeeds
    a_caller_that_goes_away_leaves_a_plug_whole_or_undone
    an_unknown_device_cannot_be_unplugged
    a_bridge_holds_31_devices
    a_pci_device_has_an_address_behind_a_bridge
    an_unplug_without_a_guest_times_out_and_can_be_repeated
    killing_twice_succeeds
    everyone_who_waits_hears_the_end
    a_dropped_handle_ends_its_vm
    a_vm_that_stays_is_adopted_with_its_devices
    a_vm_with_an_owner_is_not_adopted
    a_vm_that_is_gone_is_not_adopted
    another_vm_is_not_adopted
    a_kill_from_outside_is_told_from_our_own
    a_guest_that_powers_off_is_a_shutdown
    a_guest_that_panics_shows_its_console
    an_owner_learns_of_an_end_it_missed
    limits_on_the_cpu_hold_and_go
    the_cost_of_a_vm_is_known
    a_launch_that_fails_anywhere_leaves_nothing
    a_plug_that_fails_anywhere_can_be_done_again
    a_bad_configuration_is_refused_before_anything_happens
}

async fn expect(events: &mut Receiver<VmEvent>, wanted: &VmEvent) {
    let found = timeout(SOON, async { while events.recv().await.unwrap() != *wanted {} }).await;
    found.unwrap_or_else(|_| panic!("no {wanted:?}"));
}

async fn wait(vm: &dyn Vm) -> ExitReason {
    timeout(BOOT, vm.wait()).await.expect("the VM ends")
}

async fn a_vm_launched_paused_runs_when_it_is_resumed(bench: Bench) {
    let vm = bench.launch().await;
    assert_eq!(vm.status().await.unwrap(), VmStatus::Created);
    let mut events = vm.events();
    vm.resume().await.unwrap();
    expect(&mut events, &VmEvent::Resumed).await;
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    vm.kill().await.unwrap();
    expect(&mut events, &VmEvent::Exited(ExitReason::Killed)).await;
    bench.assert_clean();
}

async fn pausing_and_resuming_twice_changes_nothing(bench: Bench) {
    let vm = bench.launch().await;
    vm.resume().await.unwrap();
    vm.resume().await.unwrap();
    let mut events = vm.events();
    vm.pause().await.unwrap();
    vm.pause().await.unwrap();
    expect(&mut events, &VmEvent::Paused).await;
    assert_eq!(vm.status().await.unwrap(), VmStatus::Paused);
    vm.resume().await.unwrap();
    assert_eq!(vm.status().await.unwrap(), VmStatus::Running);
    vm.kill().await.unwrap();
}

async fn a_disk_is_plugged_in_and_out_again(bench: Bench) {
    let vm = bench.launch().await;
    vm.resume().await.unwrap();
    let mut events = vm.events();
    for round in 0..3 {
        let plugged = match round {
            0 => vm.plug(disk(bench.disk("data", 7))).await,
            _ => vm.plug(disk(bench.read_only_disk("data", 7))).await,
        };
        assert_eq!(plugged.unwrap(), id("data"));
        vm.unplug(&id("data"), SOON).await.unwrap();
        expect(&mut events, &VmEvent::Unplugged(id("data"))).await;
    }
    vm.kill().await.unwrap();
}

async fn a_disk_there_from_the_start_can_be_unplugged(bench: Bench) {
    let mut config = bench.config();
    config.disks = vec![bench.disk("root", 0), bench.read_only_disk("layer", 1)];
    let vm = bench.vmm().launch(config).await.unwrap();
    vm.unplug(&id("root"), SOON).await.unwrap();
    vm.plug(disk(bench.disk("other", 0))).await.unwrap();
    vm.unplug(&id("layer"), SOON).await.unwrap();
    vm.kill().await.unwrap();
}

async fn disks_share_a_throttle(bench: Bench) {
    let mut config = bench.config();
    config.throttle = Some(Throttle { iops: 100, bytes_per_second: 1 << 20 });
    config.disks = vec![bench.disk("cold", 0)];
    let vm = bench.vmm().launch(config).await.unwrap();
    vm.plug(disk(bench.disk("hot", 1))).await.unwrap();
    vm.unplug(&id("cold"), SOON).await.unwrap();
    vm.unplug(&id("hot"), SOON).await.unwrap();
    vm.kill().await.unwrap();
}

async fn an_id_that_is_taken_is_refused(bench: Bench) {
    let vm = bench.launch().await;
    vm.plug(disk(bench.disk("data", 0))).await.unwrap();
    let again = vm.plug(disk(bench.disk("data", 1))).await;
    assert!(matches!(&again, Err(VmmError::DeviceExists { id }) if *id == self::id("data")));
    vm.unplug(&id("data"), SOON).await.unwrap();
    vm.kill().await.unwrap();
}

async fn a_place_that_is_taken_is_refused_and_nothing_stays(bench: Bench) {
    let vm = bench.launch().await;
    vm.plug(disk(bench.disk("one", 3))).await.unwrap();
    let second = vm.plug(disk(bench.disk("two", 3))).await;
    assert!(matches!(&second, Err(VmmError::PlaceTaken { .. })), "{second:?}");
    vm.plug(disk(bench.disk("two", 4))).await.unwrap();
    vm.kill().await.unwrap();
}

async fn a_controller_that_does_not_exist_is_refused(bench: Bench) {
    let vm = bench.launch().await;
    let mut lost = bench.disk("lost", 0);
    lost.place = DiskPlace::Virtio;
    let late = vm.plug(disk(lost)).await;
    assert!(matches!(&late, Err(VmmError::Config(_))), "{late:?}");
    let mut lost = bench.disk("lost", 1);
    lost.place = DiskPlace::Scsi { controller: 3, lun: 0 };
    let plugged = vm.plug(disk(lost)).await;
    assert!(matches!(&plugged, Err(VmmError::NoSuchPlace { .. })), "{plugged:?}");
    vm.kill().await.unwrap();
}

async fn of_two_who_plug_the_same_id_at_once_one_succeeds(bench: Bench) {
    let vm = bench.launch().await;
    for _ in 0..10 {
        let (one, two) = (disk(bench.disk("twin", 0)), disk(bench.disk("twin", 1)));
        let (one, two) = tokio::join!(vm.plug(one), vm.plug(two));
        let loser = match (one, two) {
            (Ok(_), Err(loser)) | (Err(loser), Ok(_)) => loser,
            other => panic!("{other:?}"),
        };
        assert!(matches!(&loser, VmmError::DeviceExists { .. }), "{loser:?}");
        vm.unplug(&id("twin"), SOON).await.unwrap();
    }
    vm.kill().await.unwrap();
}

async fn a_caller_that_goes_away_leaves_a_plug_whole_or_undone(bench: Bench) {
    let vm = bench.launch().await;
    for micros in [0, 50, 200, 1000, 5000] {
        let plug = vm.plug(disk(bench.disk("data", 0)));
        let _ = timeout(Duration::from_micros(micros), plug).await;
        // The change goes on by itself; a later one of the same id waits for nothing, so it may
        // meet it half-way and is repeated.
        let unplugged = timeout(SOON, async {
            while vm.unplug(&id("data"), SOON).await.is_err() {
                if vm.plug(disk(bench.disk("data", 0))).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        unplugged.await.unwrap();
        // Nothing of either attempt is in the way.
        eventually_plugs(&*vm, &bench).await;
    }
    vm.kill().await.unwrap();
}

async fn eventually_plugs(vm: &dyn Vm, bench: &Bench) {
    let plugged = timeout(SOON, async {
        while vm.plug(disk(bench.disk("data", 0))).await.is_err() {
            let _ = vm.unplug(&id("data"), SOON).await;
        }
    });
    plugged.await.unwrap();
    vm.unplug(&id("data"), SOON).await.unwrap();
}

async fn an_unknown_device_cannot_be_unplugged(bench: Bench) {
    let vm = bench.launch().await;
    for name in ["nothing", "vm-rng"] {
        let error = vm.unplug(&id(name), SOON).await.unwrap_err();
        assert!(matches!(&error, VmmError::UnknownDevice { .. }), "{error:?}");
    }
    vm.resume().await.unwrap();
    vm.plug(disk(bench.disk("data", 0))).await.unwrap();
    vm.unplug(&id("data"), SOON).await.unwrap();
    let error = vm.unplug(&id("data"), SOON).await.unwrap_err();
    assert!(matches!(&error, VmmError::UnknownDevice { .. }), "{error:?}");
    vm.kill().await.unwrap();
}

async fn a_bridge_holds_31_devices(bench: Bench) {
    let vm = bench.launch().await;
    // Of 32 places one is the entropy's.
    for number in 0..31 {
        let port = bench.port(&format!("p{number}"));
        vm.plug(Device::SerialPort(port)).await.unwrap();
    }
    let sockets = bench.sockets();
    let one_more = vm.plug(Device::SerialPort(bench.port("more"))).await;
    assert!(matches!(&one_more, Err(VmmError::Full { .. })), "{one_more:?}");
    assert_eq!(bench.sockets(), sockets, "the refused port's socket is gone again");
    vm.kill().await.unwrap();
    bench.assert_clean();
}

async fn a_pci_device_has_an_address_behind_a_bridge(bench: Bench) {
    let vm = bench.boot(Guest::Idles).await;
    vm.resume().await.unwrap();
    let device = |name| Device::Pci(PciDevice { id: id(name), source: PciSource::Teaching });
    let up = async {
        while !vm.console_tail().await.contains("up") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(BOOT, up).await.expect("the guest comes up");
    vm.plug(device("first")).await.unwrap();
    vm.plug(device("second")).await.unwrap();
    let (first, second) =
        (vm.pci_address(&id("first")).await.unwrap(), vm.pci_address(&id("second")).await.unwrap());
    assert!(
        first.bus > 0 && first.bus == second.bus && first.slot != second.slot,
        "{first} {second}"
    );
    let unknown = vm.pci_address(&id("third")).await;
    assert!(matches!(&unknown, Err(VmmError::UnknownDevice { .. })), "{unknown:?}");
    vm.unplug(&id("first"), SOON).await.unwrap();
    assert!(vm.pci_address(&id("first")).await.is_err());
    vm.kill().await.unwrap();
    bench.assert_clean();
}

async fn an_unplug_without_a_guest_times_out_and_can_be_repeated(bench: Bench) {
    let vm = bench.launch().await;
    vm.plug(Device::SerialPort(bench.port("extra"))).await.unwrap();
    for _ in 0..2 {
        let error = vm.unplug(&id("extra"), Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(&error, VmmError::UnplugTimeout { .. }), "{error:?}");
    }
    vm.kill().await.unwrap();
}

async fn killing_twice_succeeds(bench: Bench) {
    let vm = bench.launch().await;
    vm.kill().await.unwrap();
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await, ExitReason::Killed);
    assert_eq!(vm.status().await.unwrap(), VmStatus::Exited);
    assert!(matches!(vm.resume().await, Err(VmmError::Gone)));
    assert!(matches!(vm.plug(disk(bench.disk("late", 0))).await, Err(VmmError::Gone)));
    assert!(matches!(vm.stats().await, Err(VmmError::Gone)));
    bench.assert_clean();
}

async fn everyone_who_waits_hears_the_end(bench: Bench) {
    let vm: std::sync::Arc<dyn Vm> = bench.launch().await.into();
    let waiters: Vec<_> = (0..10)
        .map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.wait().await })
        })
        .collect();
    tokio::task::yield_now().await;
    vm.kill().await.unwrap();
    for waiter in waiters {
        let reason = timeout(SOON, waiter).await.unwrap().unwrap();
        assert_eq!(reason, ExitReason::Killed);
    }
    assert_eq!(vm.wait().await, ExitReason::Killed, "and whoever asks later");
}

async fn a_dropped_handle_ends_its_vm(bench: Bench) {
    let vm = bench.launch().await;
    let pid = vm.identity().pid;
    drop(vm);
    eventually("the process is gone and reaped", || !exists(pid));
    eventually("its sockets are gone", || bench.sockets().is_empty());
}

/// Launches a VM that stays, and lets go of it.
async fn leave(bench: &Bench, config: VmConfig) -> VmIdentity {
    let vm = bench.vmm().launch(VmConfig { die_with_owner: false, ..config }).await.unwrap();
    vm.plug(disk(bench.disk("heirloom", 5))).await.unwrap();
    let identity = vm.identity().clone();
    // As it would be kept in a file.
    let text = serde_json::to_string(&identity).unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn a_vm_that_stays_is_adopted_with_its_devices(bench: Bench) {
    let mut config = bench.config();
    config.throttle = Some(Throttle { iops: 100, bytes_per_second: 0 });
    let identity = leave(&bench, config).await;
    let vm = bench.vmm().adopt(&identity).await.unwrap();
    assert_eq!(*vm.identity(), identity);
    let mut events = vm.events();
    vm.resume().await.unwrap();
    expect(&mut events, &VmEvent::Resumed).await;
    let again = vm.plug(disk(bench.disk("heirloom", 6))).await;
    assert!(matches!(&again, Err(VmmError::DeviceExists { .. })), "{again:?}");
    vm.unplug(&id("heirloom"), SOON).await.unwrap();
    vm.plug(disk(bench.disk("mine", 5))).await.unwrap();
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await, ExitReason::Killed);
    bench.assert_clean();
}

async fn a_vm_with_an_owner_is_not_adopted(bench: Bench) {
    let vm = bench.launch().await;
    let adopted = bench.vmm().adopt(vm.identity()).await.map(|_| ());
    assert!(matches!(&adopted, Err(VmmError::Busy)), "{adopted:?}");
    vm.resume().await.unwrap();
    vm.kill().await.unwrap();
}

async fn a_vm_that_is_gone_is_not_adopted(bench: Bench) {
    let identity = leave(&bench, bench.config()).await;
    let other_start = VmIdentity { start_time: identity.start_time + 1, ..identity.clone() };
    let other_boot = VmIdentity { boot_id: "another boot".into(), ..identity.clone() };
    for stranger in [other_start, other_boot] {
        let adopted = bench.vmm().adopt(&stranger).await.map(|_| ());
        assert!(matches!(&adopted, Err(VmmError::Gone)), "{adopted:?}");
    }
    bench.vmm().adopt(&identity).await.unwrap().kill().await.unwrap();
    let adopted = bench.vmm().adopt(&identity).await.map(|_| ());
    assert!(matches!(&adopted, Err(VmmError::Gone)), "{adopted:?}");
}

async fn another_vm_is_not_adopted(bench: Bench) {
    let identity = leave(&bench, bench.config()).await;
    let stranger = VmIdentity { id: Uuid::new_v4(), ..identity.clone() };
    let adopted = bench.vmm().adopt(&stranger).await.map(|_| ());
    assert!(matches!(&adopted, Err(VmmError::NotThatVm { .. })), "{adopted:?}");
    bench.vmm().adopt(&identity).await.unwrap().kill().await.unwrap();
}

async fn a_kill_from_outside_is_told_from_our_own(bench: Bench) {
    let vm = bench.launch().await;
    let pid = rustix::process::Pid::from_raw(vm.identity().pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let reason = wait(&*vm).await;
    assert!(matches!(&reason, ExitReason::Signal { signal: 9, .. }), "{reason:?}");
    assert!(!reason.is_expected());
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await, reason, "a later kill changes no history");
    bench.assert_clean();
}

async fn a_guest_that_powers_off_is_a_shutdown(bench: Bench) {
    let vm = bench.boot(Guest::PowersOff).await;
    let mut events = vm.events();
    vm.resume().await.unwrap();
    assert_eq!(wait(&*vm).await, ExitReason::Shutdown);
    let wanted = VmEvent::ShutDown { by_guest: true, reason: "guest-shutdown".into() };
    expect(&mut events, &wanted).await;
    assert!(vm.console_tail().await.contains("up"));
    bench.assert_clean();
}

async fn a_guest_that_panics_shows_its_console(bench: Bench) {
    let vm = bench.boot(Guest::Panics).await;
    vm.resume().await.unwrap();
    let reason = wait(&*vm).await;
    let ExitReason::Panic { console } = &reason else { panic!("{reason:?}") };
    assert!(console.contains("Kernel panic - not syncing"), "{console}");
    assert!(!reason.is_expected());
    bench.assert_clean();
}

async fn an_owner_learns_of_an_end_it_missed(bench: Bench) {
    let vm = bench.boot_to_stay(Guest::Panics).await;
    vm.resume().await.unwrap();
    let identity = vm.identity().clone();
    drop(vm);
    // Whenever the guest panics, now or during the adoption, its last words are still there.
    let vm = bench.vmm().adopt(&identity).await.unwrap();
    let reason = wait(&*vm).await;
    assert!(matches!(&reason, ExitReason::Panic { .. }), "{reason:?}");
    bench.assert_clean();
}

async fn limits_on_the_cpu_hold_and_go(bench: Bench) {
    let path = format!("coracle-test-{}", bench.marker());
    let mut config = bench.config();
    config.cgroup = Some(Cgroup {
        path: path.clone().into(),
        cpu_millis: Some(500),
        cpu_weight: Some(50),
        is_optional: false,
    });
    let vm = bench.vmm().launch(config).await.unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", vm.identity().pid)).unwrap();
    assert!(groups.contains(&path), "{groups}");
    let directory = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"]
        .map(|root| std::path::Path::new(root).join(&path))
        .into_iter()
        .find(|directory| directory.exists())
        .expect("a group for the VM");
    vm.kill().await.unwrap();
    assert!(!directory.exists(), "the group is left behind");
    bench.assert_clean();
}

async fn the_cost_of_a_vm_is_known(bench: Bench) {
    let vm = bench.launch().await;
    let stats = vm.stats().await.unwrap();
    assert!(stats.resident_bytes > 0 && stats.uptime < Duration::from_secs(600), "{stats:?}");
    vm.kill().await.unwrap();
}

async fn a_launch_that_fails_anywhere_leaves_nothing(bench: Bench) {
    let mut failures = BTreeSet::new();
    for at in 1.. {
        let effects = Effects::interrupt(at, Interruption::Fail);
        let mut config = bench.config();
        config.serial_ports = vec![bench.port("control"), bench.port("streams")];
        config.disks = vec![bench.disk("root", 0)];
        let path = format!("coracle-test-{}", bench.marker());
        config.cgroup = Some(Cgroup {
            path: path.into(),
            cpu_millis: None,
            cpu_weight: None,
            is_optional: false,
        });
        match bench.vmm_with(effects).launch(config).await {
            Ok(vm) => {
                // Only the last effect of all, that of the kill, is left to interrupt.
                let interrupted = vm.kill().await.is_err();
                vm.kill().await.unwrap();
                if !interrupted {
                    break;
                }
            }
            Err(VmmError::Injected { name }) => {
                assert!(failures.insert(name) || name == "launch.socket")
            }
            Err(other) => panic!("{other}"),
        }
        bench.assert_clean();
    }
    let wanted = ["launch.cgroup", "launch.connect", "launch.socket", "launch.spawn"];
    assert_eq!(failures, BTreeSet::from(wanted));
}

async fn a_plug_that_fails_anywhere_can_be_done_again(bench: Bench) {
    let mut failures = 0;
    for at in 1.. {
        let vm = bench.vmm_with(Effects::interrupt(at, Interruption::Fail));
        let Ok(vm) = vm.launch(bench.config()).await else { continue };
        let mut interrupted = false;
        // What fails is simply repeated; it must then succeed.
        for _ in 0..2 {
            match vm.plug(disk(bench.disk("data", 0))).await {
                Ok(_) => break,
                Err(VmmError::Injected { .. }) => interrupted = true,
                Err(other) => panic!("effect {at}: {other}"),
            }
        }
        for _ in 0..2 {
            match vm.unplug(&id("data"), SOON).await {
                Ok(()) => break,
                Err(VmmError::Injected { .. }) => interrupted = true,
                Err(other) => panic!("effect {at}: {other}"),
            }
        }
        // The second attempt of an interrupted kill succeeds too.
        interrupted |= vm.kill().await.is_err();
        vm.kill().await.unwrap();
        if !interrupted {
            break;
        }
        failures += 1;
    }
    assert!(failures >= 6, "only {failures} effects were interrupted");
    bench.assert_clean();
}

async fn a_bad_configuration_is_refused_before_anything_happens(bench: Bench) {
    let bad: [fn(&Bench, &mut VmConfig); 7] = [
        |_, config| config.vcpus = 0,
        |_, config| config.name = "a,b".into(),
        |_, config| config.memory.size = coracle_vmm::MiB(0),
        |_, config| config.scsi_controllers = 5,
        |bench, config| {
            config.scsi_controllers = 0;
            config.disks = vec![bench.disk("root", 0)];
        },
        |bench, config| config.disks = vec![bench.disk("root", 256)],
        |_, config| config.memory.low_mmio_gap = Some(coracle_vmm::MiB(4000)),
    ];
    for spoil in bad {
        let mut config = bench.config();
        spoil(&bench, &mut config);
        let launched = bench.vmm().launch(config).await.map(|_| ());
        assert!(matches!(&launched, Err(VmmError::Config(_))), "{launched:?}");
        bench.assert_clean();
    }
    let mut config = bench.config();
    config.disks = vec![bench.disk("twin", 0), bench.disk("twin", 1)];
    let launched = bench.vmm().launch(config).await.map(|_| ());
    assert!(matches!(&launched, Err(VmmError::DeviceExists { .. })), "{launched:?}");
}
