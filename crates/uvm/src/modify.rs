//! How one change of a VM is split between its host half and its guest half.
//!
//! ```text
//!   no guest half, or nobody to ask  -> all of it to the host
//!   Add    with a host half          -> host, then guest; guest fails: host undone
//!   Remove with a host half          -> guest, then host; guest fails: host untouched
//!   no host half, or Update          -> guest alone
//! ```
//!
//! [`plan`] decides, [`apply`] does. A device is thus never in the guest's hands without being
//! plugged in, and never pulled out under a mounted file system.

use std::future::Future;
use std::time::Duration;

use coracle_bridge::client::BridgeError;
use coracle_bridge::message::{ContainerId, Resource, Verb};
use coracle_vmm::VmmError;

use crate::lifecycle::Machine;

/// A change failed, in one of its halves.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// The host refused a change that is all its own.
    #[error(transparent)]
    Host(VmmError),
    /// The host half of an add.
    #[error("adding VM resources")]
    Adding(#[source] VmmError),
    /// The host half of a remove; the guest has let go already.
    #[error("removing VM resources")]
    Removing(#[source] VmmError),
    /// The guest half.
    #[error("guest modify")]
    Guest(#[source] BridgeError),
    /// The guest did not answer in time; what became of the request is not known.
    #[error("the guest did not answer within {} s", limit.as_secs())]
    GuestTimeout {
        /// How long it was waited for.
        limit: Duration,
    },
    /// There is a guest half and nobody to ask.
    #[error("the VM has no guest connection")]
    NoGuest,
}

/// The order of the halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Everything goes to the host.
    HostAlone,
    /// Everything goes to the guest.
    GuestAlone,
    /// The host first; undone there if the guest fails.
    HostThenGuest,
    /// The guest first; if it fails the host is left alone.
    GuestThenHost,
}

/// Which halves a change has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halves {
    /// Something is plugged in, taken out or changed on the host.
    pub host: bool,
    /// Something is to be told to the guest.
    pub guest: bool,
}

/// Decides the order. `connected` says whether there is a guest to ask.
pub fn plan(verb: Verb, halves: Halves, connected: bool) -> Plan {
    if !halves.guest || !connected {
        return Plan::HostAlone;
    }
    match verb {
        Verb::Add if halves.host => Plan::HostThenGuest,
        Verb::Remove if halves.host => Plan::GuestThenHost,
        Verb::Add | Verb::Remove | Verb::PreAdd | Verb::Update => Plan::GuestAlone,
    }
}

/// What a change does on the host: done, and undone if need be.
pub trait HostHalf: Send {
    /// Does it.
    fn apply(&mut self) -> impl Future<Output = Result<(), VmmError>> + Send;
    /// Undoes an add.
    fn undo(&mut self) -> impl Future<Output = Result<(), VmmError>> + Send;
}

/// Carries a plan out. `undo_limit` bounds the undoing, and is counted from when that begins: the
/// time that ran out for the change must not run out for its undoing.
///
/// # Errors
/// The half that failed. A failed undo is only logged, as the first failure is what matters.
pub async fn apply<G>(
    plan: Plan,
    host: &mut impl HostHalf,
    guest: G,
    undo_limit: Duration,
) -> Result<(), ModifyError>
where
    G: Future<Output = Result<(), BridgeError>> + Send,
{
    match plan {
        Plan::HostAlone => host.apply().await.map_err(ModifyError::Host),
        Plan::GuestAlone => guest.await.map_err(ModifyError::Guest),
        Plan::HostThenGuest => {
            host.apply().await.map_err(ModifyError::Adding)?;
            let Err(error) = guest.await else { return Ok(()) };
            match tokio::time::timeout(undo_limit, host.undo()).await {
                Ok(Ok(())) => {}
                Ok(Err(undo)) => tracing::error!(%undo, "cannot undo what the guest refused"),
                Err(_) => tracing::error!("undoing what the guest refused took too long"),
            }
            Err(ModifyError::Guest(error))
        }
        Plan::GuestThenHost => {
            guest.await.map_err(ModifyError::Guest)?;
            host.apply().await.map_err(|error| {
                tracing::error!(%error, "the guest let go, the host did not");
                ModifyError::Removing(error)
            })
        }
    }
}

/// The host half of a change that has none.
#[derive(Debug, Clone, Copy)]
pub struct NoHost;

impl HostHalf for NoHost {
    async fn apply(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    async fn undo(&mut self) -> Result<(), VmmError> {
        Ok(())
    }
}

impl Machine {
    /// A change that is all the guest's, within the time one may take.
    pub(crate) async fn ask_guest(
        &self,
        verb: Verb,
        resource: Resource,
    ) -> Result<(), ModifyError> {
        let limit = self.host.device_timeout;
        let asked = tokio::time::timeout(limit, self.modify_guest(verb, resource)).await;
        asked.unwrap_or(Err(ModifyError::GuestTimeout { limit }))
    }

    /// A change that is all the guest's. It may not have said yet that it runs: its cold disks
    /// are mounted before.
    pub(crate) async fn modify_guest(
        &self,
        verb: Verb,
        resource: Resource,
    ) -> Result<(), ModifyError> {
        let guest = self.guest().ok_or(ModifyError::NoGuest)?;
        self.host.effects.announce("guest.modify").map_err(ModifyError::Host)?;
        let plan = plan(verb, Halves { host: false, guest: true }, true);
        let vm = ContainerId::vm();
        let asked = guest.modify(&vm, verb, &resource);
        apply(plan, &mut NoHost, asked, self.host.cleanup_timeout).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const BOTH: Halves = Halves { host: true, guest: true };

    #[test]
    fn the_halves_go_in_the_order_of_the_verb() {
        assert_eq!(plan(Verb::Add, BOTH, true), Plan::HostThenGuest);
        assert_eq!(plan(Verb::Remove, BOTH, true), Plan::GuestThenHost);
        assert_eq!(plan(Verb::Update, BOTH, true), Plan::GuestAlone);
    }

    #[test]
    fn a_change_without_a_host_half_is_the_guests_alone() {
        let guest = Halves { host: false, guest: true };
        for verb in [Verb::Add, Verb::Remove, Verb::PreAdd, Verb::Update] {
            assert_eq!(plan(verb, guest, true), Plan::GuestAlone);
        }
    }

    #[test]
    fn without_a_guest_half_or_a_guest_all_is_the_hosts() {
        let host = Halves { host: true, guest: false };
        for verb in [Verb::Add, Verb::Remove, Verb::PreAdd, Verb::Update] {
            assert_eq!(plan(verb, host, true), Plan::HostAlone);
            assert_eq!(plan(verb, BOTH, false), Plan::HostAlone);
        }
    }

    /// Writes down what happens, and fails where told.
    struct Script<'a> {
        log: &'a Mutex<Vec<&'static str>>,
        fails: &'static [&'static str],
    }

    impl Script<'_> {
        fn step(&self, name: &'static str) -> Result<(), VmmError> {
            self.log.lock().unwrap().push(name);
            if self.fails.contains(&name) { Err(VmmError::Gone) } else { Ok(()) }
        }
    }

    impl HostHalf for Script<'_> {
        async fn apply(&mut self) -> Result<(), VmmError> {
            self.step("host")
        }
        async fn undo(&mut self) -> Result<(), VmmError> {
            self.step("undo")
        }
    }

    fn run(plan: Plan, fails: &'static [&'static str]) -> (Vec<&'static str>, String) {
        let log = Mutex::new(Vec::new());
        let guest = async {
            log.lock().unwrap().push("guest");
            if fails.contains(&"guest") { Err(BridgeError::Closed) } else { Ok(()) }
        };
        let mut host = Script { log: &log, fails };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let outcome = runtime.block_on(apply(plan, &mut host, guest, Duration::from_secs(1)));
        let text = outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        (log.into_inner().unwrap(), text)
    }

    #[test]
    fn an_add_the_guest_refuses_is_undone_on_the_host() {
        let (log, text) = run(Plan::HostThenGuest, &["guest"]);
        assert_eq!((log, text.as_str()), (vec!["host", "guest", "undo"], "guest modify"));
    }

    #[test]
    fn a_failed_undo_does_not_hide_the_first_failure() {
        let (log, text) = run(Plan::HostThenGuest, &["guest", "undo"]);
        assert_eq!((log, text.as_str()), (vec!["host", "guest", "undo"], "guest modify"));
    }

    #[test]
    fn an_add_the_host_refuses_never_reaches_the_guest() {
        let (log, text) = run(Plan::HostThenGuest, &["host"]);
        assert_eq!((log, text.as_str()), (vec!["host"], "adding VM resources"));
    }

    #[test]
    fn a_remove_the_guest_refuses_leaves_the_host_alone() {
        let (log, text) = run(Plan::GuestThenHost, &["guest"]);
        assert_eq!((log, text.as_str()), (vec!["guest"], "guest modify"));
    }

    #[test]
    fn a_remove_the_host_refuses_is_not_undone_in_the_guest() {
        let (log, text) = run(Plan::GuestThenHost, &["host"]);
        assert_eq!((log, text.as_str()), (vec!["guest", "host"], "removing VM resources"));
    }

    #[test]
    fn the_hosts_own_error_comes_unwrapped() {
        let (log, text) = run(Plan::HostAlone, &["host"]);
        assert_eq!((log, text), (vec!["host"], VmmError::Gone.to_string()));
    }
}
