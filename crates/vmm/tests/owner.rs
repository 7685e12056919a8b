//! What becomes of a VM when its owner is killed, at any moment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use coracle_vmm::{ExitReason, VmIdentity};
use support::{Bench, Monitor, eventually, exists, fake_program, id};

/// An owner in a process of its own; killed when dropped.
struct Owner(Child);

impl Owner {
    fn start(bench: &Bench, fate: &str, effect: u64) -> Self {
        let monitor = match bench.monitor {
            Monitor::Fake => fake_program(),
            Monitor::Qemu => "qemu",
        };
        let child = Command::new(env!("CARGO_BIN_EXE_coracle-vm-owner"))
            .args([monitor, &bench.dir.path().display().to_string(), fate, &effect.to_string()])
            .env("CORACLE_VM_NAME", bench.marker())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The identity of the VM it launched; none when it died before that.
    fn identity(&mut self) -> Option<VmIdentity> {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_owner_takes_its_vm_along() {
    for monitor in [Monitor::Fake, Monitor::Qemu] {
        let bench = Bench::new(monitor);
        let mut owner = Owner::start(&bench, "dies", 0);
        let identity = owner.identity().expect("a VM");
        assert!(exists(identity.pid));
        owner.kill();
        eventually("the VM dies with its owner", || bench.processes().is_empty());
    }
}

#[test]
fn an_owner_killed_at_any_effect_of_the_launch_leaves_no_process() {
    for monitor in [Monitor::Fake, Monitor::Qemu] {
        let mut deaths = 0;
        for effect in 1.. {
            let bench = Bench::new(monitor);
            let mut owner = Owner::start(&bench, "dies", effect);
            let launched = owner.identity().is_some();
            owner.kill();
            eventually("no process is left", || bench.processes().is_empty());
            if launched {
                break;
            }
            deaths += 1;
        }
        assert_eq!(deaths, 3, "socket, spawn and connect");
    }
}

#[tokio::test]
async fn a_vm_outlives_its_killed_owner_and_obeys_the_next() {
    for monitor in [Monitor::Fake, Monitor::Qemu] {
        let bench = Bench::new(monitor);
        let mut owner = Owner::start(&bench, "stays", 0);
        let identity = owner.identity().expect("a VM");
        owner.kill();
        let vm = bench.vmm().adopt(&identity).await.unwrap();
        vm.resume().await.unwrap();
        vm.plug(support::disk(bench.disk("data", 0))).await.unwrap();
        vm.unplug(&id("data"), support::SOON).await.unwrap();
        vm.kill().await.unwrap();
        assert_eq!(vm.wait().await, ExitReason::Killed);
        bench.assert_clean();
    }
}

#[tokio::test]
async fn the_death_of_an_adopted_vm_is_noticed_without_being_its_parent() {
    let bench = Bench::new(Monitor::Qemu);
    let mut owner = Owner::start(&bench, "stays", 0);
    let identity = owner.identity().expect("a VM");
    owner.kill();
    let vm = bench.vmm().adopt(&identity).await.unwrap();
    let pid = rustix::process::Pid::from_raw(identity.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let reason = vm.wait().await;
    assert!(matches!(&reason, ExitReason::Failed { status: None, .. }), "{reason:?}");
    bench.assert_clean();
}
