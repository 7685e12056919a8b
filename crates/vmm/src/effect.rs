//! The points at which a VM changes the host, by name, so that a test can make any of them fail
//! or kill the process there.
//!
//! Each effect is announced right before it happens. In production the announcement costs one
//! branch.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::VmmError;

/// Counts effects and interrupts one of them. The default interrupts none.
#[derive(Debug, Clone, Default)]
pub struct Effects(Option<Arc<Plan>>);

#[derive(Debug)]
struct Plan {
    seen: AtomicU64,
    at: u64,
    how: Interruption,
}

/// What happens at the chosen effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The effect fails with [`VmmError::Injected`] instead of happening.
    Fail,
    /// The process is killed by SIGKILL.
    Die,
}

impl Effects {
    /// Interrupts the `at`-th effect, counted from 1; 0 only counts.
    pub fn interrupt(at: u64, how: Interruption) -> Self {
        Self(Some(Arc::new(Plan { seen: AtomicU64::new(0), at, how })))
    }

    /// How many effects have been announced.
    pub fn seen(&self) -> u64 {
        self.0.as_ref().map_or(0, |plan| plan.seen.load(Ordering::Relaxed))
    }

    /// Announces an effect.
    pub(crate) fn announce(&self, name: &'static str) -> Result<(), VmmError> {
        let Some(plan) = &self.0 else { return Ok(()) };
        if plan.seen.fetch_add(1, Ordering::Relaxed) + 1 != plan.at {
            return Ok(());
        }
        match plan.how {
            Interruption::Fail => Err(VmmError::Injected { name }),
            Interruption::Die => {
                let me = rustix::process::getpid();
                // SIGKILL to ourselves cannot fail and does not return to us for long.
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                Err(VmmError::Injected { name })
            }
        }
    }
}
