//! VMs that die: by a signal, by a panic, with their owner.

use std::process::Stdio;
use std::time::Duration;

use coracle_bridge::message::ProcessParameters;
use coracle_uvm::options::{ChannelBacking, KeeperPlacement};
use coracle_uvm::{UnexpectedExit, UtilityVm, UvmError};
use coracle_vmm::ExitReason;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Place, assert_gone, example, within};

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// The channel is kept by a process here, which must not be left either.
#[tokio::test]
async fn a_monitor_killed_in_mid_run_is_an_unexpected_exit_and_leaves_nothing() {
    let place = Place::new();
    let keeper = vec![example("keeper").to_str().unwrap().to_owned()];
    let started = place.started(|o| o.host.keeper = KeeperPlacement::Process(keeper)).await;
    assert!(matches!(started.vm.exit_error(), Err(UvmError::NotExited)));
    kill(started.pid);
    within("the wait", started.vm.wait()).await;
    let error = started.vm.exit_error().unwrap_err();
    let UvmError::UnexpectedExit(UnexpectedExit(ExitReason::Signal { signal: 9, .. })) = error
    else {
        panic!("{error}")
    };
    let asked = started.vm.create_process(&ProcessParameters::default()).await;
    assert!(matches!(asked, Err(UvmError::NotRunning { .. })));
    started.close().await;
    let keepers = processes_with(&place.run_dir());
    assert!(keepers.is_empty(), "{keepers:?} are left");
}

/// The daemon does not notice by itself that its VM is gone.
#[tokio::test]
async fn what_carries_the_channel_over_af_vsock_goes_with_its_vm() {
    let place = Place::new();
    let vsock = ChannelBacking::Vsock { program: None };
    let started = place.started(|o| o.host.channel = vsock).await;
    let daemon = started.vm.record().vsock_server().unwrap();
    assert!(daemon.is_alive());
    started.vm.dump_stacks().await.unwrap();
    kill(started.pid);
    within("the wait", started.vm.wait()).await;
    started.close().await;
    assert!(!daemon.is_alive());
}

/// Processes that have the path on their command line.
fn processes_with(path: &std::path::Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(path))
        .collect()
}

#[tokio::test]
async fn a_kernel_that_panics_is_blamed_with_its_last_words() {
    let place = Place::new();
    let mut opts = place.options();
    opts.kernel_boot_options = "rdinit=/nowhere".to_owned();
    let vm = UtilityVm::create_lcow(opts).await.unwrap();
    let pid = vm.vm_identity().pid;
    let error = within("the start's failure", vm.start()).await.unwrap_err();
    let UvmError::ExitedDuringStart { source: UnexpectedExit(reason), .. } = error else {
        panic!("{error}")
    };
    let ExitReason::Panic { console } = reason else { panic!("{reason}") };
    assert!(console.contains("Kernel panic"), "{console}");
    vm.close().await.unwrap();
    assert_gone(pid);
    assert!(!place.run_dir().exists());
}

/// hcsshim's issue 421: the VM must not outlive the program that made it.
#[tokio::test]
async fn a_vm_dies_with_its_owner() {
    let place = Place::new();
    let mut owner = Command::new(example("boot"))
        .arg(place.run_dir())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = within("the VM's start", lines.next_line()).await.unwrap().unwrap();
    let pid: u32 = line.strip_prefix("pid ").unwrap().parse().unwrap();
    kill(owner.id().unwrap());
    owner.wait().await.unwrap();
    within("the VM's end", async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A share is not its maker's to lose: it works on when that is killed, and ends with the VM.
#[tokio::test]
async fn a_share_works_on_when_its_runtime_is_killed() {
    let place = Place::new();
    let shared = place.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let mut owner = Command::new(example("share"))
        .args([&place.run_dir(), &shared, &example("keeper"), &example("plan9")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = within("the VM's start", lines.next_line()).await.unwrap().unwrap();
    let pid: u32 = line.strip_prefix("pid ").unwrap().parse().unwrap();
    // Its end is this test's duty from here on, however that ends.
    let _vm = Killed(pid);
    let count = || {
        let text = std::fs::read_to_string(shared.join("count")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let reaches = async |goal: u64| {
        while count() < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the first counts", reaches(3)).await;
    kill(owner.id().unwrap());
    owner.wait().await.unwrap();
    let then = count();
    within("counts after the kill", reaches(then + 20)).await;
    assert_eq!(processes_with(&shared).len(), 1, "the server of the share");
    kill(pid);
    within("the end of server and keeper", async {
        while !processes_with(&shared).is_empty() || !processes_with(&place.run_dir()).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A process that is killed when the test is over.
struct Killed(u32);

impl Drop for Killed {
    fn drop(&mut self) {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", self.0));
        if line.is_ok_and(|line| line.contains("qemu-system")) {
            kill(self.0);
        }
    }
}
