//! The calls that wait for an answer. Pure: time comes in as an argument.
//!
//! ```text
//!  begin --answer--> settled
//!    |---deadline--> the caller still waits, or may not give up: the bridge dies
//!    |               the caller gave up, and may: only the deadline goes
//!    '---bridge ends--> failed
//! ```

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use super::error::{BridgeError, BridgeFault};
use crate::frame::MessageType;
use crate::message::incoming::Fatal;

/// Where an answer goes, whatever its shape.
pub(super) trait Settle: Send {
    /// Reads the answer and passes it on.
    fn answer(self: Box<Self>, body: &[u8]) -> Result<(), Fatal>;
    /// There will be no answer.
    fn fail(self: Box<Self>, error: BridgeError);
    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
}

/// A call as it is made.
pub(super) struct Call {
    pub(super) request: MessageType,
    /// How long the guest may take; `None` for as long as it likes.
    pub(super) limit: Option<Duration>,
    /// Whether the caller may give up, so that the answer is not waited for.
    pub(super) cancellable: bool,
    pub(super) settle: Box<dyn Settle>,
}

struct Pending {
    call: Call,
    deadline: Option<Instant>,
}

/// All pending calls, by id.
#[derive(Default)]
pub(super) struct Calls {
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

impl Calls {
    /// Enters a call and gives it its id; ids count from 0.
    pub(super) fn begin(&mut self, call: Call, now: Instant) -> u64 {
        let id = self.next;
        self.next += 1;
        let deadline = call.limit.map(|limit| now + limit);
        self.pending.insert(id, Pending { call, deadline });
        id
    }

    /// The call with this id; it is pending no more.
    pub(super) fn take(&mut self, id: u64) -> Option<Call> {
        self.pending.remove(&id).map(|pending| pending.call)
    }

    /// When [`expire`](Self::expire) has something to look at.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.pending.values().filter_map(|pending| pending.deadline).min()
    }

    /// Looks at the calls whose deadline has passed: one that was given up stays
    /// pending without it, as its answer may still come; any other is a fault.
    pub(super) fn expire(&mut self, now: Instant) -> Result<(), BridgeFault> {
        for pending in self.pending.values_mut() {
            if pending.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            let Call { request, limit, cancellable, ref settle, .. } = pending.call;
            if !(cancellable && settle.is_abandoned()) {
                let seconds = limit.unwrap_or_default().as_secs();
                return Err(BridgeFault::TimedOut { request, seconds });
            }
            pending.deadline = None;
        }
        Ok(())
    }

    /// Whether a call is pending that must be seen through although nobody waits.
    pub(super) fn oblige(&self) -> bool {
        self.pending.values().any(|pending| pending.deadline.is_some() && !pending.call.cancellable)
    }

    /// All pending calls; none is pending any more.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Call> {
        std::mem::take(&mut self.pending).into_values().map(|pending| pending.call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody {
        abandoned: bool,
    }

    impl Settle for Nobody {
        fn answer(self: Box<Self>, _body: &[u8]) -> Result<(), Fatal> {
            Ok(())
        }
        fn fail(self: Box<Self>, _error: BridgeError) {}
        fn is_abandoned(&self) -> bool {
            self.abandoned
        }
    }

    fn call(seconds: Option<u64>, cancellable: bool, abandoned: bool) -> Call {
        Call {
            request: MessageType::CREATE,
            limit: seconds.map(Duration::from_secs),
            cancellable,
            settle: Box::new(Nobody { abandoned }),
        }
    }

    #[test]
    fn ids_count_from_zero_and_an_answer_is_taken_once() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        assert_eq!(calls.begin(call(None, false, false), now), 0);
        assert_eq!(calls.begin(call(None, false, false), now), 1);
        assert!(calls.take(0).is_some());
        assert!(calls.take(0).is_none());
    }

    #[test]
    fn the_earliest_deadline_is_next_and_a_wait_has_none() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        calls.begin(call(None, false, false), now);
        assert_eq!(calls.next_deadline(), None);
        calls.begin(call(Some(9), false, false), now);
        calls.begin(call(Some(4), false, false), now);
        assert_eq!(calls.next_deadline(), Some(now + Duration::from_secs(4)));
    }

    #[test]
    fn only_an_abandoned_cancellable_call_may_run_over_its_deadline() {
        for (cancellable, abandoned, lives) in
            [(true, true, true), (true, false, false), (false, true, false), (false, false, false)]
        {
            let (mut calls, now) = (Calls::default(), Instant::now());
            let id = calls.begin(call(Some(1), cancellable, abandoned), now);
            assert!(calls.expire(now).is_ok());
            let expired = calls.expire(now + Duration::from_secs(1));
            assert_eq!(expired.is_ok(), lives, "{cancellable} {abandoned}");
            // Its answer may still come, and must not count as one nobody asked for.
            assert!(calls.take(id).is_some());
        }
    }

    #[test]
    fn a_call_that_cannot_be_cancelled_obliges_the_driver_and_a_wait_does_not() {
        let (mut calls, now) = (Calls::default(), Instant::now());
        calls.begin(call(None, false, true), now);
        calls.begin(call(Some(1), true, true), now);
        assert!(!calls.oblige());
        calls.begin(call(Some(1), false, true), now);
        assert!(calls.oblige());
    }
}
