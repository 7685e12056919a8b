//! The VM's wall clock.
//!
//! The kernel takes its first idea of the time from the emulated real-time clock, which counts
//! whole seconds and may be wrong on purpose. The host says on the command line what time it was
//! when it wrote that; as the VM has been running since, the host's time plus the VM's uptime is
//! the least it can be now. So the clock only ever moves forward, which nothing minds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

/// A difference not worth a jump.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Moves the clock forward if it is behind `written`, the host's time before the boot, plus the
/// time since.
pub fn catch_up(written: SystemTime) -> Result<()> {
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the uptime")?;
    let least = written + Duration::from(uptime);
    if least.duration_since(SystemTime::now()).is_ok_and(|behind| behind > TOLERANCE) {
        set(least)?;
    }
    Ok(())
}

fn set(time: SystemTime) -> Result<()> {
    let since = time.duration_since(UNIX_EPOCH).context("the host's clock is before 1970")?;
    let nanoseconds =
        i64::try_from(since.as_nanos()).context("the host's clock is beyond the year 2262")?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(nanoseconds))
        .context("setting the clock")
}
