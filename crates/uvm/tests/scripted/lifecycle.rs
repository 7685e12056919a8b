//! Start, wait, terminate and close, in every order, on a machine that follows a script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_uvm::options::OutputHandler;
use coracle_uvm::timeline::Stage;
use coracle_uvm::{State, UvmError};
use coracle_vmm::ExitReason;
use tokio::io::AsyncReadExt;

use crate::support::{Bridge, Guest, Rig, files, within};

/// How long "does not happen" is looked at.
const A_MOMENT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_started_vm_runs_and_its_guest_has_entropy() {
    let guest = Guest::default();
    let fed = guest.fed.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    assert_eq!(fed.lock().unwrap().len(), 512);
    let (protocol, capabilities) = vm.capabilities();
    assert_eq!(protocol, 4);
    assert!(capabilities.signal_process_supported && vm.signal_process_supported());
    vm.close().await.unwrap();
    assert_eq!(vm.state(), State::Closed);
    rig.assert_clean().await;
}

/// The seed's start tests make and close three VMs for each way to boot.
#[tokio::test]
async fn one_folder_serves_one_vm_after_the_other() {
    let rig = Rig::new(Guest::default());
    for _ in 0..3 {
        let vm = rig.started().await;
        vm.close().await.unwrap();
        rig.assert_clean().await;
    }
}

#[tokio::test]
async fn the_listeners_of_the_boot_are_gone_after_it() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let names = files(&rig.run_dir());
    assert!(!names.contains(&"vsock_1".to_owned()), "{names:?}");
    assert!(!names.contains(&"vsock_109".to_owned()), "{names:?}");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_run_folder_that_was_there_is_left_as_it_was() {
    let rig = Rig::new(Guest::default());
    std::fs::create_dir(rig.run_dir()).unwrap();
    std::fs::write(rig.run_dir().join("theirs"), "").unwrap();
    let vm = rig.started().await;
    vm.close().await.unwrap();
    // The sockets of its machine are the monitor's, and the scripted one leaves them.
    let names = files(&rig.run_dir());
    assert_eq!(names, ["control.sock", "streams.sock", "theirs"]);
}

#[tokio::test]
async fn a_second_start_is_refused_without_harm() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let error = vm.start().await.unwrap_err();
    assert!(matches!(error, UvmError::CannotStart { state: State::Running, .. }), "{error}");
    assert_eq!(vm.state(), State::Running);
    assert_eq!(vm.dump_stacks().await.unwrap(), "a stack");
    vm.close().await.unwrap();
    let error = vm.start().await.unwrap_err();
    assert!(matches!(error, UvmError::CannotStart { state: State::Closed, .. }), "{error}");
}

/// The seed deadlocks here: it waits for output which only a start would bring.
#[tokio::test]
async fn a_vm_that_was_never_started_closes_at_once_and_again() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    within("the close", vm.close()).await.unwrap();
    within("the second close", vm.close()).await.unwrap();
    assert_eq!(vm.state(), State::Closed);
    rig.assert_clean().await;
}

#[tokio::test]
async fn closes_that_come_together_are_one() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let (first, second, third) = tokio::join!(vm.close(), vm.close(), vm.close());
    first.and(second).and(third).unwrap();
    assert_eq!(rig.vmm.log().iter().filter(|effect| **effect == "kill").count(), 1);
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_close_that_is_given_up_goes_on() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    // Polled once, then dropped.
    let _ = tokio::time::timeout(Duration::ZERO, vm.close()).await;
    within("the wait", vm.wait()).await;
    rig.assert_clean().await;
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_vm_that_cannot_be_ended_is_reported_and_may_be_closed_again() {
    let rig = Rig::new(Guest::default());
    let limit = Duration::from_millis(100);
    let vm = rig.create_with(|o| o.host.cleanup_timeout = limit).await.unwrap();
    vm.start().await.unwrap();
    rig.vmm.fail("kill");
    let error = within("the close", vm.close()).await.unwrap_err();
    assert!(matches!(error, UvmError::StillAlive { .. }), "{error}");
    rig.vmm.mend("kill");
    within("the second close", vm.close()).await.unwrap();
    within("the wait", vm.wait()).await;
    rig.assert_clean().await;
}

#[tokio::test]
async fn waiting_for_a_vm_that_was_not_started_waits() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    assert!(tokio::time::timeout(A_MOMENT, vm.wait()).await.is_err());
    assert!(matches!(vm.exit_error(), Err(UvmError::NotExited)));
    vm.close().await.unwrap();
    within("the wait", vm.wait()).await;
}

#[tokio::test]
async fn any_number_of_waiters_learn_of_the_end() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.wait().await })
        })
        .collect();
    vm.terminate().await.unwrap();
    for waiter in waiters {
        within("a waiter's end", waiter).await.unwrap();
    }
    within("a late waiter's end", vm.wait()).await;
    vm.close().await.unwrap();
}

#[tokio::test]
async fn terminate_ends_a_vm_in_every_state_and_as_often_as_asked() {
    let rig = Rig::new(Guest::default());
    let created = rig.create().await;
    created.terminate().await.unwrap();
    within("the wait for a VM that never started", created.wait()).await;
    assert_eq!(created.state(), State::Exited);
    created.exit_error().unwrap();
    created.close().await.unwrap();
    created.terminate().await.unwrap();

    let vm = rig.started().await;
    vm.terminate().await.unwrap();
    vm.terminate().await.unwrap();
    within("the wait", vm.wait()).await;
    vm.exit_error().unwrap();
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_vm_that_shuts_itself_down_has_no_exit_error() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    rig.vmm.end(ExitReason::Shutdown);
    within("the wait", vm.wait()).await;
    vm.exit_error().unwrap();
    assert_eq!(vm.state(), State::Exited);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_vm_that_crashes_is_waited_for_without_error_and_has_an_exit_error() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let reason = ExitReason::Signal { signal: 9, stderr: String::new() };
    rig.vmm.end(reason.clone());
    within("the wait", vm.wait()).await;
    let error = vm.exit_error().unwrap_err();
    let UvmError::UnexpectedExit(exit) = error else { panic!("{error}") };
    assert_eq!(exit.0, reason);
    vm.close().await.unwrap();
    assert!(vm.exit_error().is_err(), "the reason outlives the close");
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_vm_that_ends_before_its_start_is_not_waited_for_in_vain() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    rig.vmm.end(ExitReason::Failed { status: Some(1), stderr: "no memory".to_owned() });
    within("the wait", vm.wait()).await;
    let error = vm.start().await.unwrap_err();
    assert!(matches!(error, UvmError::CannotStart { state: State::Exited, .. }), "{error}");
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn wait_returns_when_the_output_handler_has_taken_everything() {
    let rig = Rig::new(Guest { log: Some("raw bytes, no JSON"), ..Guest::default() });
    let taken = Arc::new(Mutex::new(String::new()));
    let handler = {
        let taken = taken.clone();
        OutputHandler::new(move |mut stream| {
            let taken = taken.clone();
            async move {
                let mut text = String::new();
                // The end of a dead VM's connection may be a reset.
                let _ = stream.read_to_string(&mut text).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                *taken.lock().unwrap() = "done".to_owned();
            }
        })
    };
    let vm = rig.create_with(|o| o.output_handler = Some(handler)).await.unwrap();
    vm.start().await.unwrap();
    vm.terminate().await.unwrap();
    within("the wait", vm.wait()).await;
    assert_eq!(*taken.lock().unwrap(), "done");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_custom_handler_gets_the_bytes_as_they_came() {
    let rig = Rig::new(Guest { log: Some("raw bytes, no JSON"), ..Guest::default() });
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let mut told = told;
    let handler = OutputHandler::new(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut bytes = [0; 18];
            stream.read_exact(&mut bytes).await.unwrap();
            tell.send(bytes).unwrap();
        }
    });
    let vm = rig.create_with(|o| o.output_handler = Some(handler)).await.unwrap();
    vm.start().await.unwrap();
    let bytes = within("the bytes", told.recv()).await.unwrap();
    assert_eq!(&bytes, b"raw bytes, no JSON");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_handler_that_never_ends_does_not_hold_up_close_for_ever() {
    let rig = Rig::new(Guest::default());
    let vm = rig
        .create_with(|o| {
            o.output_handler = Some(OutputHandler::new(|_| std::future::pending()));
            o.host.cleanup_timeout = Duration::from_millis(200);
        })
        .await
        .unwrap();
    vm.start().await.unwrap();
    within("the close", vm.close()).await.unwrap();
    within("the wait", vm.wait()).await;
    rig.assert_clean().await;
}

#[tokio::test]
async fn closing_a_vm_that_is_being_started_ends_the_start() {
    let rig = Rig::new(Guest { bridge: Bridge::Silent, ..Guest::default() });
    let vm = rig.create().await;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start().await }
    });
    within("the agent's first sign", async {
        while vm.timeline().at(Stage::Agent).is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    vm.close().await.unwrap();
    let error = within("the start's end", starting).await.unwrap().unwrap_err();
    assert!(matches!(error, UvmError::ExitedDuringStart { .. }), "{error}");
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_start_that_is_given_up_ends_the_vm() {
    let rig = Rig::new(Guest { bridge: Bridge::Silent, ..Guest::default() });
    let vm = rig.create().await;
    assert!(tokio::time::timeout(A_MOMENT, vm.start()).await.is_err());
    within("the wait", vm.wait()).await;
    assert_eq!(vm.state(), State::Exited);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn the_last_handle_takes_the_vm_with_it() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let other = vm.clone();
    drop(vm);
    assert_eq!(other.dump_stacks().await.unwrap(), "a stack");
    drop(other);
    rig.assert_clean().await;
}

#[tokio::test]
async fn the_last_handle_of_a_vm_that_never_started_takes_it_too() {
    let rig = Rig::new(Guest::default());
    drop(rig.create().await);
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_vm_that_may_outlive_its_owner_does() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create_with(|o| o.host.die_with_owner = false).await.unwrap();
    vm.start().await.unwrap();
    drop(vm);
    tokio::time::sleep(A_MOMENT).await;
    assert!(rig.vmm.is_alive());
    assert!(rig.run_dir().exists());
}

#[tokio::test]
async fn a_vm_without_a_guest_connection_starts_and_says_so() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create_with(|o| o.use_guest_connection = false).await.unwrap();
    vm.start().await.unwrap();
    assert_eq!(vm.state(), State::Running);
    assert_eq!(vm.capabilities().0, 0);
    assert!(!vm.signal_process_supported() && !vm.delete_container_state_supported());
    assert_eq!(vm.dump_stacks().await.unwrap(), "");
    let error = vm.delete_container_state("c").await.unwrap_err();
    assert_eq!(error.to_string(), "uvm guest connection does not support deleteContainerState");
    let error = vm.create_process(&Default::default()).await.unwrap_err();
    assert!(matches!(error, UvmError::NoGuestConnection { .. }), "{error}");
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn an_internal_guest_connection_is_the_same_connection_here() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create_with(|o| o.options.external_guest_connection = false).await.unwrap();
    vm.start().await.unwrap();
    assert_eq!(vm.capabilities().0, 4);
    vm.close().await.unwrap();
}

#[tokio::test]
async fn before_the_start_there_are_no_capabilities_and_no_guest() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create().await;
    assert_eq!(vm.capabilities(), Default::default());
    assert_eq!(vm.dump_stacks().await.unwrap(), "");
    let error = vm.create_process(&Default::default()).await.unwrap_err();
    assert!(matches!(error, UvmError::NotRunning { state: State::Created, .. }), "{error}");
    vm.close().await.unwrap();
}

#[tokio::test]
async fn the_timeline_has_every_stage_in_order() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let timeline = vm.timeline();
    let stages: Vec<_> = timeline.marks.iter().map(|(stage, _)| *stage).collect();
    let all = [
        Stage::Create,
        Stage::Spawn,
        Stage::Monitor,
        Stage::Channel,
        Stage::PowerOn,
        Stage::Agent,
        Stage::Bridge,
        Stage::Ready,
        Stage::Disks,
    ];
    assert_eq!(stages, all);
    assert!(timeline.marks.is_sorted_by_key(|(_, at)| *at));
    vm.close().await.unwrap();
}

#[tokio::test]
async fn statistics_are_read_from_the_monitor() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let stats = vm.stats().await.unwrap();
    assert_eq!(stats.processor.total_runtime_ns, 3_000_000);
    assert_eq!(stats.memory.working_set_bytes, 7 << 20);
    assert_eq!(stats.memory.vm_memory.assigned_memory, 1024 * 256);
    vm.close().await.unwrap();
}

/// The seed keeps the failure of its first look for ever.
#[tokio::test]
async fn statistics_that_failed_once_are_read_anew() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    rig.vmm.fail("stats");
    assert!(matches!(vm.stats().await, Err(UvmError::Stats { .. })));
    rig.vmm.mend("stats");
    vm.stats().await.unwrap();
    vm.close().await.unwrap();
}

#[test]
fn an_owner_whose_runtime_ends_leaves_the_folder_of_a_vm_that_outlives_it() {
    for die_with_owner in [false, true] {
        let rig = Rig::new(Guest::default());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let vm = runtime.block_on(async {
            let vm = rig.create_with(|o| o.host.die_with_owner = die_with_owner).await.unwrap();
            vm.start().await.unwrap();
            vm
        });
        // As a program does that gives up: nobody is left to let go in good order.
        drop(runtime);
        drop(vm);
        assert_eq!(rig.run_dir().exists(), !die_with_owner);
    }
}
