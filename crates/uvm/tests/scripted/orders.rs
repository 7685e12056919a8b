//! Every order of three calls in a VM's life, each run to its end.

use coracle_uvm::{State, UtilityVm, UvmError};
use coracle_vmm::ExitReason;

use crate::support::{Guest, Rig, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start,
    Terminate,
    /// The guest powers off by itself.
    PowerOff,
    Close,
}

const STEPS: [Step; 4] = [Step::Start, Step::Terminate, Step::PowerOff, Step::Close];

/// Takes a step and checks what it says against what the state allows.
async fn take(rig: &Rig, vm: &UtilityVm, step: Step) {
    let before = vm.state();
    match step {
        Step::Start => match vm.start().await {
            Ok(()) => assert_eq!((before, vm.state()), (State::Created, State::Running)),
            Err(UvmError::CannotStart { state, .. }) => {
                assert_eq!(state, before);
                assert_ne!(before, State::Created);
            }
            Err(error) => panic!("{error}"),
        },
        Step::Terminate => {
            vm.terminate().await.unwrap();
            assert!(vm.state().is_over());
        }
        Step::PowerOff => {
            rig.vmm.end(ExitReason::Shutdown);
            vm.wait().await;
            assert!(vm.state().is_over());
        }
        Step::Close => {
            vm.close().await.unwrap();
            assert_eq!(vm.state(), State::Closed);
        }
    }
    if before == State::Closed {
        assert_eq!(vm.state(), State::Closed, "nothing leaves Closed");
    }
}

#[tokio::test]
async fn calls_in_any_order_end_and_leave_nothing() {
    let rig = Rig::new(Guest::default());
    for first in STEPS {
        for second in STEPS {
            for third in STEPS {
                let order = [first, second, third];
                let vm = rig.create().await;
                for step in order {
                    within(&format!("{step:?} in {order:?}"), take(&rig, &vm, step)).await;
                }
                let ends = order.iter().any(|step| *step != Step::Start);
                assert_eq!(vm.exit_error().is_ok(), ends, "{order:?}");
                within("the last close", vm.close()).await.unwrap();
                within("the wait", vm.wait()).await;
                vm.exit_error().unwrap();
                rig.assert_clean().await;
            }
        }
    }
}
