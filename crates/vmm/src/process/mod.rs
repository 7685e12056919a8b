//! The process a VM is: how it is spawned, watched, recognised and reaped.

pub(crate) mod launcher;
mod output;
mod stat;

use std::{io, os::fd::OwnedFd};

pub(crate) use output::{Tail, reopen_stderr, stderr_pipe};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
};
pub(crate) use stat::{ProcessStat, host_boot_id, ticks, uptime};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// One process, held by a descriptor that can never come to mean another.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as we may know: only a parent learns the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signalled(i32),
    Unknown,
}

impl Process {
    /// Holds the process which has this id now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        // Read after the descriptor is held, the start time is that of the same process.
        let start_time = ProcessStat::read(pid)?.start_time;
        Ok(Self { pid, start_time, pidfd: sys::watch(pidfd)? })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Kills it; a process that is dead already is fine.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended, without waiting and without reaping it.
    pub(crate) fn is_dead(&self) -> bool {
        let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it has ended, leaving its status to whoever reaps it.
    pub(crate) async fn ended_unreaped(&self) {
        // Should polling fail, the caller finds out by whatever it does next.
        let _ = self.pidfd.readable().await;
    }

    /// Waits until it has ended and reaps it if it is our child.
    pub(crate) async fn ended(&self) -> Ending {
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
