//! The VM's wall clock.
//!
//! The kernel takes its first idea of the time from the emulated real-time clock, which counts
//! whole seconds and may be wrong on purpose. The host knows better and says so twice: on the
//! command line, before boot, and when the bridge negotiates. Before anything else runs the clock
//! may be set either way; a value from before the boot is only ever a lower bound.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_settime};

/// A difference not worth a jump.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Moves the clock forward to `time`, if it is behind; a clock that is ahead has only kept
/// ticking while the VM booted.
pub fn advance_to(time: SystemTime) -> Result<()> {
    if time.duration_since(SystemTime::now()).is_ok_and(|behind| behind > TOLERANCE) {
        set(time)?;
    }
    Ok(())
}

/// Sets the clock to what the host says now.
pub fn adjust_to(time: SystemTime) -> Result<()> {
    let now = SystemTime::now();
    let off = time.duration_since(now).or_else(|_| now.duration_since(time)).unwrap_or_default();
    if off > TOLERANCE { set(time) } else { Ok(()) }
}

fn set(time: SystemTime) -> Result<()> {
    let since = time.duration_since(UNIX_EPOCH).context("the host's clock is before 1970")?;
    let nanoseconds =
        i64::try_from(since.as_nanos()).context("the host's clock is beyond the year 2262")?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(nanoseconds))
        .context("setting the clock")
}
