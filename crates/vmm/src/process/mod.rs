//! The process a VM is: how it is spawned, watched, recognised and reaped.

pub(crate) mod launcher;
mod output;
mod server;
mod stat;

use std::{io, os::fd::OwnedFd};

pub(crate) use output::Tail;
pub use output::{reopen_stderr, stderr_pipe};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
use serde::{Deserialize, Serialize};
pub use server::DeviceServer;
pub use stat::host_boot_id;
pub(crate) use stat::{ProcessStat, ticks, uptime};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A variable in the environment of every process that is part of a VM: `RUN_DIR/NAME`, so that the
/// process is found even if its starter died before writing down who it is.
pub const PART: &str = "CORACLE_PART";

/// Has a program enter a control group before it begins, so that whatever it starts is in it too.
pub fn enter_before_exec(command: &mut std::process::Command, entry: OwnedFd) {
    sys::before_exec(command, move || {
        rustix::io::write(&entry, b"0").map(drop).map_err(Into::into)
    });
}

/// Names one process as long as the host is up: process ids alone are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id on the host.
    pub pid: u32,
    /// Start time in clock ticks since the host booted (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
}

impl ProcessIdentity {
    /// This very process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, start_time: ProcessStat::read(pid)?.start_time })
    }

    /// Whether it lives. A zombie does not.
    pub fn is_alive(&self) -> bool {
        ProcessStat::read(self.pid)
            .is_ok_and(|stat| stat.start_time == self.start_time && stat.state != b'Z')
    }
}

/// One process, held by a descriptor that can never come to mean another.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as we may know: only a parent learns the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It was not our child.
    Unknown,
}

impl Process {
    /// Holds the process which has this id now.
    ///
    /// # Errors
    /// There is none, or it cannot be held. Must be called within a tokio runtime.
    pub fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        // Read after the descriptor is held, the start time is that of the same process.
        let start_time = ProcessStat::read(pid)?.start_time;
        Ok(Self { pid, start_time, pidfd: sys::watch(pidfd)? })
    }

    /// Holds this very process; none when it is gone.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub fn find(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let found = match Self::open(identity.pid) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok((found.start_time == identity.start_time && !found.is_dead()).then_some(found))
    }

    /// Its name for ever.
    pub fn identity(&self) -> ProcessIdentity {
        ProcessIdentity { pid: self.pid, start_time: self.start_time }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its start time, as in [`ProcessIdentity`].
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Kills it; a process that is dead already is fine.
    ///
    /// # Errors
    /// It is not ours to kill.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Asks it to end; a process that is dead already is fine.
    ///
    /// # Errors
    /// As [`Process::kill`].
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended, without waiting and without reaping it.
    pub fn is_dead(&self) -> bool {
        let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it has ended, leaving its status to whoever reaps it. Cancel safe.
    pub async fn ended_unreaped(&self) {
        // Should polling fail, the caller finds out by whatever it does next.
        let _ = self.pidfd.readable().await;
    }

    /// Waits until it has ended and reaps it if it is our child. Cancel safe.
    pub async fn ended(&self) -> Ending {
        self.ended_unreaped().await;
        self.reap()
    }

    /// Waits without a runtime, for a process just killed.
    pub(crate) fn reap(&self) -> Ending {
        use std::os::fd::AsFd;
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let Ok(Some(status)) = status else { return Ending::Unknown };
        if let Some(code) = status.exit_status() {
            return Ending::Exited(code);
        }
        status.terminating_signal().map_or(Ending::Unknown, Ending::Signalled)
    }
}

/// The processes whose environment has this variable with this value, zombies left out.
///
/// Only what may be looked into is found: our own processes, or all of them for root.
pub fn processes_with((variable, value): &(String, String)) -> Vec<ProcessIdentity> {
    let wanted = format!("{variable}={value}");
    all_processes()
        .filter(|(_, environment)| environment.contains(&wanted))
        .map(|(identity, _)| identity)
        .collect()
}

/// Every process that may be looked into, with its environment.
pub fn all_processes() -> impl Iterator<Item = (ProcessIdentity, Vec<String>)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let stat = ProcessStat::read(pid).ok()?;
        if environment.is_empty() || stat.state == b'Z' {
            return None;
        }
        let entries = environment.split(|byte| *byte == 0);
        let text = entries.map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
        Some((ProcessIdentity { pid, start_time: stat.start_time }, text))
    })
}
