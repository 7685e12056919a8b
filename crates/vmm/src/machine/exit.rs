//! Why a VM ended, decided from all that was seen of it. Pure.

use crate::{ExitReason, VmStatus, process::Ending, qmp::Event};

/// What the guest did to end the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It powered off.
    Shutdown,
    /// It reset the machine.
    Reset,
    /// It reported a panic through a panic device.
    Panic,
    /// It stands still after one of the above which nobody saw, or after an internal error.
    Stopped,
    /// The host told the monitor to quit.
    Quit,
    /// The host sent the monitor this signal.
    Signal(i32),
}

/// The word Linux begins its last console line with.
const PANIC: &str = "Kernel panic - not syncing";

impl Cause {
    /// Reads QMP's `SHUTDOWN` and `GUEST_PANICKED`; none for any other event.
    pub(super) fn of(event: &Event) -> Option<Self> {
        match (event.name.as_str(), event.text("reason")) {
            ("GUEST_PANICKED", _) => Some(Cause::Panic),
            ("SHUTDOWN", Some("guest-reset")) => Some(Cause::Reset),
            ("SHUTDOWN", Some("guest-panic")) => Some(Cause::Panic),
            ("SHUTDOWN", Some("host-qmp-quit" | "host-qmp-system-reset" | "host-ui")) => {
                Some(Cause::Quit)
            }
            ("SHUTDOWN", Some("host-signal")) => Some(Cause::Signal(15)),
            ("SHUTDOWN", Some("host-error")) => Some(Cause::Stopped),
            ("SHUTDOWN", _) => Some(Cause::Shutdown),
            _ => None,
        }
    }

    /// What a run state found at a connection means; none while the VM lives.
    pub(super) fn of_state(state: &str) -> Option<Self> {
        match state {
            "guest-panicked" => Some(Cause::Panic),
            "shutdown" | "internal-error" => Some(Cause::Stopped),
            _ => None,
        }
    }
}

/// The verdict. What the guest was seen to do counts before what became of the process, since we
/// end that ourselves.
pub(super) fn reason(
    cause: Option<Cause>,
    killed: bool,
    ending: Ending,
    console: String,
    stderr: String,
) -> ExitReason {
    let panicked = console.contains(PANIC);
    match (cause, ending) {
        (Some(Cause::Panic), _) => ExitReason::Panic { console },
        (Some(Cause::Reset | Cause::Stopped), _) if panicked => ExitReason::Panic { console },
        (Some(Cause::Reset), _) => ExitReason::Reset,
        (Some(Cause::Shutdown | Cause::Stopped), _) => ExitReason::Shutdown,
        (Some(Cause::Quit), _) => ExitReason::Killed,
        _ if killed => ExitReason::Killed,
        (Some(Cause::Signal(signal)), _) | (None, Ending::Signalled(signal)) => {
            ExitReason::Signal { signal, stderr }
        }
        (None, Ending::Exited(status)) => ExitReason::Failed { status: Some(status), stderr },
        (None, Ending::Unknown) => ExitReason::Failed { status: None, stderr },
    }
}

/// QEMU's run states (`RunState` in its QMP reference) as ours.
pub(super) fn status_of(state: &str) -> VmStatus {
    match state {
        "running" => VmStatus::Running,
        "prelaunch" | "inmigrate" => VmStatus::Created,
        "shutdown" | "guest-panicked" | "internal-error" => VmStatus::Stopping,
        // paused, suspended, io-error, save-vm, and what later versions add.
        _ => VmStatus::Paused,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decide(cause: Option<Cause>, killed: bool, ending: Ending) -> ExitReason {
        reason(cause, killed, ending, "last line".into(), "oops".into())
    }

    fn shutdown(reason: &str) -> Option<Cause> {
        let data = json!({"guest": true, "reason": reason});
        Cause::of(&Event { name: "SHUTDOWN".into(), data })
    }

    #[test]
    fn a_power_off_is_a_shutdown_even_if_we_then_killed_the_monitor() {
        let cause = shutdown("guest-shutdown");
        assert_eq!(decide(cause, true, Ending::Signalled(9)), ExitReason::Shutdown);
    }

    #[test]
    fn a_reset_after_a_panic_line_is_a_panic() {
        let console = "x\nKernel panic - not syncing: VFS\nRebooting".to_owned();
        let cause = shutdown("guest-reset");
        let verdict = reason(cause, false, Ending::Exited(0), console.clone(), String::new());
        assert_eq!(verdict, ExitReason::Panic { console });
        assert_eq!(decide(cause, false, Ending::Exited(0)), ExitReason::Reset);
    }

    #[test]
    fn a_signal_that_is_not_ours_is_named() {
        let expected = ExitReason::Signal { signal: 9, stderr: "oops".into() };
        assert_eq!(decide(None, false, Ending::Signalled(9)), expected);
        assert_eq!(decide(None, true, Ending::Signalled(9)), ExitReason::Killed);
    }

    #[test]
    fn an_exit_without_a_cause_is_a_failure() {
        let failed = |status| ExitReason::Failed { status, stderr: "oops".into() };
        assert_eq!(decide(None, false, Ending::Exited(1)), failed(Some(1)));
        assert_eq!(decide(None, false, Ending::Unknown), failed(None));
    }

    #[test]
    fn a_stop_nobody_saw_is_told_by_its_run_state() {
        assert_eq!(Cause::of_state("shutdown"), Some(Cause::Stopped));
        assert_eq!(Cause::of_state("running"), None);
        let cause = Cause::of_state("shutdown");
        assert_eq!(decide(cause, false, Ending::Exited(0)), ExitReason::Shutdown);
    }
}
