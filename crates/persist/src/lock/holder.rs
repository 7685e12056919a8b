//! Who has a lock, from what the kernel lists.

use rustix::fd::AsFd;
use std::fmt;
use std::fs;
use std::time::Duration;

/// A process that has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: i32,
    /// Its name, if it can be told.
    pub name: Option<String>,
    /// How long it has been running, if that can be told. It has the lock no longer than this.
    pub age: Option<Duration>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        match (&self.name, self.age) {
            (Some(name), Some(age)) => write!(f, " ({name}, running for {} s)", age.as_secs()),
            (Some(name), None) => write!(f, " ({name})"),
            (None, _) => Ok(()),
        }
    }
}

/// The processes that have a flock on a file, as far as /proc tells.
pub(super) fn holders(file: impl AsFd) -> Vec<Holder> {
    let Ok(stat) = rustix::fs::fstat(file) else { return Vec::new() };
    let Ok(list) = fs::read_to_string("/proc/locks") else { return Vec::new() };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let place = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    pids(&list, &place).into_iter().map(describe).collect()
}

/// Lines look like `1: FLOCK  ADVISORY  WRITE 4711 fe:00:12345 0 EOF`; waiting ones have an arrow.
fn pids(list: &str, place: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = list
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
                _ => None,
            }
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn describe(pid: i32) -> Holder {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    let started = name.and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<u64>().ok());
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_once('.').and_then(|(seconds, _)| seconds.parse::<u64>().ok());
    let age = started.zip(uptime).map(|(started, uptime)| {
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_secs(uptime.saturating_sub(started / ticks))
    });
    Holder { pid, name: name.map(|(name, _)| name.to_owned()), age }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flocks_on_the_file_count_and_waiters_do_not() {
        let list = "1: FLOCK  ADVISORY  WRITE 10 fe:00:77 0 EOF\n\
                    1: -> FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                    2: POSIX  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                    3: FLOCK  ADVISORY  READ  13 fe:00:78 0 EOF\n\
                    4: FLOCK  ADVISORY  READ  9 fe:00:77 0 EOF\n\
                    nonsense\n";
        assert_eq!(pids(list, "fe:00:77"), [9, 10]);
    }

    #[test]
    fn a_process_is_described_by_name_and_age() {
        let me = describe(i32::try_from(std::process::id()).unwrap_or(0));
        assert!(me.name.is_some_and(|name| !name.is_empty()));
        assert!(me.age.is_some_and(|age| age < Duration::from_secs(3600)));
    }
}
