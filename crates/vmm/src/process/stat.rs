//! What `/proc` says about a process.

use std::{io, time::Duration};

/// Fields of `/proc/<pid>/stat` (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    /// `Z` when it is dead and waits to be reaped.
    pub(crate) state: u8,
    /// User and system time in clock ticks.
    pub(crate) cpu_ticks: u64,
    /// Start time in clock ticks since the host booted.
    pub(crate) start_time: u64,
    /// Resident memory in pages.
    pub(crate) resident_pages: u64,
}

impl ProcessStat {
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "process status"))
    }
}

/// Fields are counted from behind the command's name, which may hold anything, `)` included.
fn parse(text: &str) -> Option<ProcessStat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of these is field 3 of the manual.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(ProcessStat {
        state: *fields.first()?.as_bytes().first()?,
        cpu_ticks: number(14)?.checked_add(number(15)?)?,
        start_time: number(22)?,
        resident_pages: number(24)?,
    })
}

/// The time a number of clock ticks is.
pub(crate) fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(count.saturating_mul(1000) / per_second)
}

/// How long the host has been up, as process start times count it.
pub(crate) fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or_default())
}

/// The id of the host's present boot.
///
/// # Errors
/// `/proc` cannot be read.
pub fn host_boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_parentheses_is_skipped() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194304 1 0 0 0 7 5 0 0 20 0 1 0 9000 1 3 18446";
        let stat = parse(text).unwrap();
        let expected =
            ProcessStat { state: b'S', cpu_ticks: 12, start_time: 9000, resident_pages: 3 };
        assert_eq!(stat, expected);
    }

    #[test]
    fn a_truncated_status_is_refused() {
        assert_eq!(parse("42 (x) S 1 2 3"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn our_own_status_can_be_read() {
        let stat = ProcessStat::read(std::process::id()).unwrap();
        assert!(stat.start_time > 0 && stat.resident_pages > 0);
    }
}
