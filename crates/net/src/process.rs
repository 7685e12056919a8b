//! Sidecars: processes of their own that stand beside a network, started and ended by whoever keeps
//! its record.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::{NetError, Result};

/// What a sidecar says on its standard output once it serves.
pub const READY: &str = "ready";

/// A process, told from any other that has or will have its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since the host was.
    pub start_time: u64,
}

impl Sidecar {
    /// Starts `program WORDS...` in a process group of its own, and returns when it says that it
    /// serves.
    ///
    /// # Errors
    /// It cannot be started, or ends before it serves: what it said is told.
    pub fn start(program: &Path, words: &[&std::ffi::OsStr]) -> Result<Self> {
        let failed = |source| NetError::File { what: "start", path: program.to_owned(), source };
        let mut child = Command::new(program)
            .args(words)
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            // Ends when the process does.
            BufReader::new(out).read_line(&mut line).map_err(failed)?;
        }
        let pid = child.id();
        let line = line.trim();
        let start_time = start_time(pid).filter(|_| line == READY);
        // Reaps it; ends with it, or with us.
        std::thread::spawn(move || child.wait());
        start_time.map(|start_time| Self { pid, start_time }).ok_or_else(|| NetError::Device {
            name: words.first().unwrap_or(&"".as_ref()).to_string_lossy().into_owned(),
            why: if line.is_empty() { "it ended at once".to_owned() } else { line.to_owned() },
        })
    }

    /// Whether it is there.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Ends it, by force if it takes longer than `patience`. It having ended is success.
    ///
    /// # Errors
    /// It is not ours to end.
    pub fn end(self, patience: Duration) -> Result<()> {
        let failed = |source: rustix::io::Errno| NetError::System {
            what: "end a sidecar",
            source: source.into(),
        };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        // The descriptor is of one process for good: if this is ours, no other is hit.
        if !self.is_alive() {
            return Ok(());
        }
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&process, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
            let limit = Timespec::try_from(patience).ok();
            let mut polled = [PollFd::new(&process, PollFlags::IN)];
            if poll(&mut polled, limit.as_ref()).map_err(failed)? > 0 {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// When a process was started; none if it is not there, or dead and not yet reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(words.next()?, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

/// Tells whoever started us that we serve.
///
/// # Errors
/// Nobody listens.
pub fn tell_ready() -> io::Result<()> {
    use std::io::Write;
    let mut out = io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_started_known_and_ended() {
        let words = ["-c", "echo ready; exec sleep 100"].map(std::ffi::OsStr::new);
        let sidecar = Sidecar::start(Path::new("/bin/sh"), &words).unwrap();
        assert!(sidecar.is_alive());
        assert!(!Sidecar { start_time: 1, ..sidecar }.is_alive());
        Sidecar { start_time: 1, ..sidecar }.end(Duration::from_secs(5)).unwrap();
        assert!(sidecar.is_alive(), "another process of that number is left alone");
        sidecar.end(Duration::from_secs(5)).unwrap();
        assert!(!sidecar.is_alive());
        sidecar.end(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn one_that_fails_says_why() {
        let words = ["-c", "echo no luck; exit 1"].map(std::ffi::OsStr::new);
        let error = Sidecar::start(Path::new("/bin/sh"), &words).unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error}");
        assert!(Sidecar::start(Path::new("/no/such/program"), &words).is_err());
    }

    #[test]
    fn one_that_ignores_requests_is_ended_by_force() {
        let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let words = ["-c", script].map(std::ffi::OsStr::new);
        let sidecar = Sidecar::start(Path::new("/bin/sh"), &words).unwrap();
        sidecar.end(Duration::from_millis(200)).unwrap();
        assert!(!sidecar.is_alive());
    }
}
