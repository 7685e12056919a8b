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
pub struct Effects(Option<Told>);

/// Who hears of effects.
#[derive(Clone)]
enum Told {
    Plan(Arc<Plan>),
    /// Says whether the effect is to fail.
    Other(Arc<dyn Fn(&'static str) -> bool + Send + Sync>),
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plan(plan) => plan.fmt(f),
            Self::Other(_) => f.write_str("Other"),
        }
    }
}

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
        Self(Some(Told::Plan(Arc::new(Plan { seen: AtomicU64::new(0), at, how }))))
    }

    /// Tells somebody else, who may kill the process, or says whether the effect is to fail.
    pub fn told_to(fails: impl Fn(&'static str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Told::Other(Arc::new(fails))))
    }

    /// How many effects have been announced.
    pub fn seen(&self) -> u64 {
        match &self.0 {
            Some(Told::Plan(plan)) => plan.seen.load(Ordering::Relaxed),
            Some(Told::Other(_)) | None => 0,
        }
    }

    /// Announces an effect.
    ///
    /// # Errors
    /// It is to fail.
    pub fn announce(&self, name: &'static str) -> Result<(), VmmError> {
        let plan = match &self.0 {
            Some(Told::Plan(plan)) => plan,
            Some(Told::Other(fails)) if fails(name) => return Err(VmmError::Injected { name }),
            Some(Told::Other(_)) | None => return Ok(()),
        };
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
