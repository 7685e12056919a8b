//! Starts that fail: what is blamed, and that nothing is left but a VM that can be closed.

use std::time::Duration;

use coracle_uvm::{State, UtilityVm, UvmError};
use coracle_vmm::ExitReason;

use crate::support::{Bridge, Guest, Rig, chain, within};

/// A start that fails; the VM is over, waits return, and close leaves nothing.
async fn failure(rig: &Rig, limit: Duration) -> UvmError {
    let vm = rig.create_with(|o| o.host.start_timeout = limit).await.unwrap();
    let error = within("the start's failure", vm.start()).await.unwrap_err();
    assert_over(&vm).await;
    within("the close", vm.close()).await.unwrap();
    rig.assert_clean().await;
    error
}

async fn assert_over(vm: &UtilityVm) {
    assert_eq!(vm.state(), State::Exited);
    within("the wait", vm.wait()).await;
}

const SOON: Duration = Duration::from_millis(300);
const LATER: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_guest_that_never_asks_for_entropy_is_given_up() {
    let rig =
        Rig::new(Guest { entropy: false, log: None, bridge: Bridge::Silent, ..Guest::default() });
    let error = failure(&rig, SOON).await;
    let UvmError::StartTimeout { step, .. } = error else { panic!("{error}") };
    assert!(
        ["failed to connect to entropy socket", "failed to connect to log socket"].contains(&step)
    );
}

#[tokio::test]
async fn a_guest_that_never_dials_its_log_is_given_up() {
    let rig = Rig::new(Guest { log: None, bridge: Bridge::Silent, ..Guest::default() });
    let error = failure(&rig, SOON).await;
    let step = "failed to connect to log socket";
    assert!(matches!(error, UvmError::StartTimeout { step: s, .. } if s == step), "{error}");
}

#[tokio::test]
async fn a_guest_that_never_dials_the_bridge_is_given_up() {
    for bridge in [Bridge::Silent, Bridge::Mute] {
        let rig = Rig::new(Guest { bridge, ..Guest::default() });
        let error = failure(&rig, SOON).await;
        let step = "failed to connect to GCS";
        assert!(matches!(error, UvmError::StartTimeout { step: s, .. } if s == step), "{error}");
    }
}

#[tokio::test]
async fn a_guest_that_talks_nonsense_is_blamed_and_ended() {
    let rig = Rig::new(Guest { bridge: Bridge::Garbage, ..Guest::default() });
    let error = failure(&rig, LATER).await;
    assert!(matches!(error, UvmError::Handshake(_)), "{error}");
    assert!(chain(&error).starts_with("failed to connect to GCS: "), "{}", chain(&error));
}

#[tokio::test]
async fn a_vm_that_dies_during_its_start_is_blamed_whatever_broke_with_it() {
    let panic = ExitReason::Panic { console: "Kernel panic - not syncing".to_owned() };
    for step in ["power-on", "entropy", "log"] {
        let dies_after = Some((step, panic.clone()));
        let rig = Rig::new(Guest { dies_after, ..Guest::default() });
        let error = failure(&rig, LATER).await;
        let UvmError::ExitedDuringStart { source, .. } = &error else { panic!("{step}: {error}") };
        assert_eq!(source.0, panic, "{step}");
        assert!(chain(&error).contains("Kernel panic"), "{}", chain(&error));
    }
}

#[tokio::test]
async fn a_monitor_that_cannot_power_on_is_ended() {
    let rig = Rig::new(Guest::default());
    rig.vmm.fail("resume");
    let error = failure(&rig, LATER).await;
    assert!(matches!(error, UvmError::PowerOn { .. }), "{error}");
    assert_eq!(rig.vmm.log(), ["launch", "resume", "kill", "kill"]);
}

#[tokio::test]
async fn the_clean_up_of_a_start_that_ran_out_of_time_has_time_of_its_own() {
    let rig = Rig::new(Guest { bridge: Bridge::Silent, ..Guest::default() });
    let vm = rig.create_with(|o| o.host.start_timeout = Duration::ZERO).await.unwrap();
    let error = within("the start's failure", vm.start()).await.unwrap_err();
    assert!(matches!(error, UvmError::StartTimeout { .. }), "{error}");
    assert!(!rig.vmm.is_alive());
    assert_over(&vm).await;
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_vm_whose_start_failed_is_not_started_again() {
    let rig = Rig::new(Guest { bridge: Bridge::Garbage, ..Guest::default() });
    let vm = rig.create().await;
    vm.start().await.unwrap_err();
    let error = vm.start().await.unwrap_err();
    assert!(matches!(error, UvmError::CannotStart { state: State::Exited, .. }), "{error}");
    vm.close().await.unwrap();
}
