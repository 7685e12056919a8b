//! The fake's own part: monitors that refuse, die or hang up on command, and guests that are
//! programs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use coracle_vmm::{
    Device, ExitReason, MacAddress, Nic, NicSource, Vm, VmStatus, Vmm, VmmError,
    effect::Interruption, fake::FakeVmm,
};
use support::{Bench, Monitor, SOON, disk, fake_program, id};
use tokio::time::timeout;

fn fake() -> FakeVmm {
    FakeVmm::new(fake_program())
}

/// A card on a vhost-user server.
fn served_nic() -> Nic {
    let server = std::fs::File::open("/dev/null").unwrap();
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    Nic { id: id("nic"), mac, source: NicSource::VhostUser(server.into()) }
}

/// A day in the life of a VM; the first thing that fails.
async fn live(bench: &Bench, vm: &dyn Vm) -> Result<(), VmmError> {
    vm.resume().await?;
    vm.plug(disk(bench.disk("data", 0))).await?;
    vm.unplug(&id("data"), SOON).await?;
    vm.plug(Device::SerialPort(bench.port("extra"))).await?;
    vm.unplug(&id("extra"), SOON).await?;
    vm.plug(Device::Nic(served_nic())).await?;
    vm.unplug(&id("nic"), SOON).await?;
    vm.pause().await
}

#[tokio::test]
async fn whatever_the_monitor_refuses_can_be_repeated() {
    let mut refusals = 0;
    for at in 1.. {
        let bench = Bench::new(Monitor::Fake);
        let vmm = fake().interrupt(at, Interruption::Fail);
        let vm = vmm.launch(bench.config()).await.unwrap();
        let first = live(&bench, &*vm).await;
        if first.is_ok() {
            vm.kill().await.unwrap();
            break;
        }
        let error = first.unwrap_err();
        assert!(matches!(&error, VmmError::Control { .. }), "effect {at}: {error:?}");
        refusals += 1;
        // What a refused unplug left is unplugged now; what a refused plug left must be nothing.
        for name in ["data", "extra", "nic"] {
            match vm.unplug(&id(name), SOON).await {
                Ok(()) | Err(VmmError::UnknownDevice { .. }) => {}
                Err(other) => panic!("effect {at}: {other:?}"),
            }
        }
        live(&bench, &*vm).await.unwrap_or_else(|error| panic!("effect {at}: {error:?}"));
        vm.kill().await.unwrap();
        bench.assert_clean();
    }
    assert!(refusals >= 10, "only {refusals} effects");
}

#[tokio::test]
async fn a_monitor_that_dies_at_any_effect_is_told_as_such() {
    let mut deaths = 0;
    for at in 1.. {
        let bench = Bench::new(Monitor::Fake);
        let vmm = fake().interrupt(at, Interruption::Die);
        let vm = vmm.launch(bench.config()).await.unwrap();
        let lived = live(&bench, &*vm).await;
        if lived.is_ok() {
            vm.kill().await.unwrap();
            break;
        }
        deaths += 1;
        let reason = timeout(SOON, vm.wait()).await.unwrap();
        assert!(matches!(&reason, ExitReason::Signal { signal: 9, .. }), "{reason:?}");
        assert_eq!(vm.status().await.unwrap(), VmStatus::Exited);
        bench.assert_clean();
    }
    assert!(deaths >= 10, "only {deaths} effects");
}

#[tokio::test]
async fn a_broken_control_connection_is_made_again() {
    for commands in 1..12 {
        let bench = Bench::new(Monitor::Fake);
        let vmm = fake().hang_up_after(commands);
        let Ok(vm) = vmm.launch(bench.config()).await else { continue };
        // At most one command meets the broken connection.
        let mut met = 0;
        if vm.resume().await.is_err() {
            met += 1;
            vm.resume().await.unwrap();
        }
        let plugged = vm.plug(disk(bench.disk("data", 0))).await;
        if plugged.is_err() {
            met += 1;
            // What it got done is undone or found again by its name.
            let _ = vm.unplug(&id("data"), SOON).await;
            vm.plug(disk(bench.disk("data", 0))).await.unwrap();
        }
        // It may be the question at the end, when the break came right after the last answer.
        let status = match vm.status().await {
            Ok(status) => status,
            Err(_) => {
                met += 1;
                vm.status().await.unwrap()
            }
        };
        assert_eq!(status, VmStatus::Running);
        assert!(met <= 1, "{met} commands met one broken connection, after {commands} commands");
        vm.kill().await.unwrap();
        assert_eq!(vm.wait().await, ExitReason::Killed);
        bench.assert_clean();
    }
}

#[tokio::test]
async fn a_guest_program_is_handed_its_ports() {
    let bench = Bench::new(Monitor::Fake);
    let script = "echo ports: $*; for port in $2 $4; do readlink /proc/self/fd/${port#fd:}; done";
    let vmm = fake().with_guest("/bin/sh", &["-c", script, "sh"]);
    let mut config = bench.config();
    config.serial_ports = vec![bench.port("control"), bench.port("streams")];
    let vm = vmm.launch(config).await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(vm.wait().await, ExitReason::Shutdown);
    let console = vm.console_tail().await;
    assert!(console.contains("ports: --control fd:"), "{console}");
    assert_eq!(console.matches("socket:[").count(), 2, "{console}");
}

#[tokio::test]
async fn a_guest_dies_with_its_monitor() {
    let bench = Bench::new(Monitor::Fake);
    let script = format!("echo up; exec sleep 1000 # {}", bench.marker());
    let vmm = fake().with_guest("/bin/sh", &["-c", &script]);
    let vm = vmm.launch(bench.config()).await.unwrap();
    vm.resume().await.unwrap();
    let up = timeout(SOON, async {
        while !vm.console_tail().await.contains("up") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    up.await.unwrap();
    vm.kill().await.unwrap();
    support::eventually("the guest is gone", || bench.processes().is_empty());
}
