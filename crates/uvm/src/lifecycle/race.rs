//! The race every step of a start runs: the guest against the clock and against the VM's end.

use std::future::Future;
use std::io;
use std::time::Duration;

use coracle_vmm::ExitReason;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Machine, UnexpectedExit};
use crate::errors::{Result, UvmError};

/// How long a broken connection is not blamed: if it broke because the VM ended, we learn of that
/// a moment later.
const BLAME_GRACE: Duration = Duration::from_millis(500);

/// One start's race.
pub(super) struct Race<'a> {
    machine: &'a Machine,
    limit: Duration,
    deadline: Instant,
}

impl<'a> Race<'a> {
    pub(super) fn new(machine: &'a Machine, limit: Duration) -> Self {
        Self { machine, limit, deadline: Instant::now() + limit }
    }

    /// What the work gives, if it is first.
    pub(super) async fn run<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = sleep_until(self.deadline) => Err(self.late(step)),
            reason = self.machine.life.until_exit() => Err(self.exited(step, reason)),
        }
    }

    /// The same for work on a socket, whose failure the VM's end may explain.
    pub(super) async fn io<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T> {
        match self.run(step, work).await? {
            Ok(done) => Ok(done),
            Err(source) => Err(self.blame(step, UvmError::BootSocket { step, source }).await),
        }
    }

    /// What is to blame for a failure: the time, else the VM's end, else what failed.
    pub(super) async fn blame(&self, step: &'static str, cause: UvmError) -> UvmError {
        if Instant::now() >= self.deadline {
            return self.late(step);
        }
        match timeout(BLAME_GRACE, self.machine.life.until_exit()).await {
            Ok(reason) => self.exited(step, reason),
            Err(_) => cause,
        }
    }

    pub(super) fn exited(&self, step: &'static str, reason: ExitReason) -> UvmError {
        UvmError::ExitedDuringStart { step, source: UnexpectedExit(reason) }
    }

    fn late(&self, step: &'static str) -> UvmError {
        UvmError::StartTimeout { step, seconds: self.limit.as_secs() }
    }
}
