//! Who may write to a sandbox's state.
//!
//! A [`Lock`] is proof: every save takes one, and refuses it when it is shared, of another sandbox,
//! or of a sandbox that was deleted and made anew meanwhile. How a lock is held is the driver's
//! affair; the file drivers use flock(2) on the sandbox's directory, as Kata does. Readers of
//! ours need no lock, so that none of them keeps a writer waiting.

pub(crate) mod flock;
mod holder;
pub(crate) mod table;

pub use holder::Holder;

use crate::driver::{By, DriverError};
use crate::id::SandboxId;
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Whether others may hold the same lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// With others who have it shared.
    Shared,
    /// Alone.
    Exclusive,
}

/// How long to wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// This long.
    For(Duration),
    /// Until it is free, or the asking is cancelled.
    Forever,
}

/// A request for a lock.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Whether others may hold it too.
    pub mode: LockMode,
    /// How long to wait.
    pub wait: Wait,
    /// Becomes true when the lock is no longer wanted.
    pub cancel: Option<&'a AtomicBool>,
    /// Makes the sandbox's directory if there is none, for the first save.
    pub create: bool,
}

impl<'a> Ask<'a> {
    /// Asks to be alone, and waits up to `patience`.
    pub fn exclusive(patience: Duration) -> Self {
        Self { mode: LockMode::Exclusive, wait: Wait::For(patience), cancel: None, create: false }
    }

    /// Asks to share, and waits up to `patience`.
    pub fn shared(patience: Duration) -> Self {
        Self { mode: LockMode::Shared, ..Self::exclusive(patience) }
    }

    /// The same, for a sandbox that may not be there yet.
    #[must_use]
    pub fn or_create(self) -> Self {
        Self { create: true, ..self }
    }

    /// The same, given up as soon as `cancel` is true.
    #[must_use]
    pub fn unless(self, cancel: &'a AtomicBool) -> Self {
        Self { cancel: Some(cancel), ..self }
    }
}

/// Why a lock was not had.
#[derive(Debug, Error)]
pub enum LockError {
    /// There is no such sandbox.
    #[error("there is no sandbox {0}")]
    NoSandbox(SandboxId),
    /// Someone else has it.
    #[error("sandbox {id} is locked{}", held(holders))]
    Busy {
        /// The sandbox.
        id: SandboxId,
        /// Who has it, as far as can be told.
        holders: Vec<Holder>,
    },
    /// It was no longer wanted.
    #[error("the lock of sandbox {0} is no longer wanted")]
    Cancelled(SandboxId),
    /// The sandbox was deleted, and perhaps made anew, since it was locked.
    #[error("sandbox {0} was deleted since it was locked")]
    Gone(SandboxId),
    /// The lock of one sandbox was shown for another.
    #[error("the lock of sandbox {held} was shown for sandbox {wanted}")]
    OtherSandbox {
        /// Whose lock it is.
        held: SandboxId,
        /// Which sandbox was to be written.
        wanted: SandboxId,
    },
    /// A shared lock was shown for a save.
    #[error("sandbox {0} is locked for reading only")]
    SharedOnly(SandboxId),
    /// The driver cannot tell.
    #[error("cannot lock sandbox {id}")]
    Io {
        /// The sandbox.
        id: SandboxId,
        /// Why not.
        source: std::io::Error,
    },
}

fn held(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return " by another process".to_owned();
    }
    let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
    format!(" by {}", names.join(", "))
}

/// What a driver holds for a lock; dropping it gives the lock back.
pub trait Hold: Send + fmt::Debug {
    /// Whether it is still held of what it was taken of.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn is_held(&self) -> std::io::Result<bool>;

    /// Itself, for the driver that knows more of it.
    fn as_any(&self) -> &dyn Any;
}

/// A sandbox's lock. It is given back when this is dropped.
#[derive(Debug)]
pub struct Lock {
    id: SandboxId,
    mode: LockMode,
    hold: Option<Box<dyn Hold>>,
}

impl Lock {
    pub(crate) fn new(id: SandboxId, mode: LockMode, hold: Box<dyn Hold>) -> Self {
        Self { id, mode, hold: Some(hold) }
    }

    /// A lock that is not one: for a save by someone who knows that there is no other writer.
    pub fn without(id: SandboxId) -> Self {
        Self { id, mode: LockMode::Exclusive, hold: None }
    }

    /// Whose lock it is.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Whether it is shared.
    pub fn mode(&self) -> LockMode {
        self.mode
    }

    /// What the driver holds for it.
    #[cfg_attr(not(feature = "etcd"), allow(dead_code, reason = "one driver is left out"))]
    pub(crate) fn hold(&self) -> Option<&dyn Hold> {
        self.hold.as_deref()
    }

    /// Whether it is one: false for [`without`](Lock::without).
    pub fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether `wanted` may be written with this lock.
    ///
    /// # Errors
    /// When it may not.
    pub fn permits(&self, wanted: &SandboxId) -> Result<(), LockError> {
        if self.id != *wanted {
            let (held, wanted) = (self.id.clone(), wanted.clone());
            return Err(LockError::OtherSandbox { held, wanted });
        }
        if self.mode == LockMode::Shared {
            return Err(LockError::SharedOnly(self.id.clone()));
        }
        let Some(hold) = &self.hold else { return Ok(()) };
        match hold.is_held() {
            Ok(true) => Ok(()),
            Ok(false) => Err(LockError::Gone(self.id.clone())),
            Err(source) => Err(LockError::Io { id: self.id.clone(), source }),
        }
    }
}

/// The lock under which a driver writes, the caller's or one of its own.
pub(crate) enum Shown<'a> {
    Callers(&'a Lock),
    Taken(Lock),
}

impl<'a> Shown<'a> {
    /// The lock that is shown, or one that is taken; it permits to write `id`.
    pub(crate) fn of(
        by: By<'a>,
        id: &SandboxId,
        take: impl FnOnce(Ask<'_>) -> Result<Lock, DriverError>,
    ) -> Result<Self, DriverError> {
        let shown = match by {
            By::Lock(lock) => Shown::Callers(lock),
            By::Asking(ask) => Shown::Taken(take(ask)?),
        };
        shown.permits(id)?;
        Ok(shown)
    }
}

impl std::ops::Deref for Shown<'_> {
    type Target = Lock;

    fn deref(&self) -> &Lock {
        match self {
            Shown::Callers(lock) => lock,
            Shown::Taken(lock) => lock,
        }
    }
}

/// The pauses between attempts to get a lock.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    ask: Ask<'a>,
    until: Option<Instant>,
    pause: Duration,
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Late,
    Cancelled,
}

impl<'a> Patience<'a> {
    const FIRST: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_millis(20);

    pub(crate) fn new(ask: Ask<'a>) -> Self {
        let until = match ask.wait {
            Wait::No => Some(Instant::now()),
            Wait::For(time) => Instant::now().checked_add(time),
            Wait::Forever => None,
        };
        Self { ask, until, pause: Self::FIRST }
    }

    /// Waits a little, unless there is no point.
    pub(crate) fn pause(&mut self) -> Result<(), Over> {
        if self.ask.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Over::Cancelled);
        }
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Over::Late);
        }
        std::thread::sleep(self.pause.min(left.unwrap_or(Self::LONGEST)));
        self.pause = (self.pause * 2).min(Self::LONGEST);
        Ok(())
    }
}
