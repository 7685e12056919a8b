//! The 9P server of one share as a program of its own: a thin main stands over this.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use coracle_plan9::{Export, ExportError, ServeError, serve};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Order {
    /// The directory.
    pub directory: PathBuf,
    /// Refuse everything that changes anything.
    pub read_only: bool,
    /// If there are any, only these names exist in the directory itself.
    pub allowed: Option<Vec<String>>,
    /// The VM's process and when it was started, in ticks since the host's boot: the server ends
    /// with it.
    pub vm: (u32, u64),
}

/// A server could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Its VM is not there, or is another one by now.
    #[error("there is no VM with process {pid}")]
    NoVm {
        /// The process.
        pid: u32,
    },
    /// The directory cannot be shared.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// It can serve nobody.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves at a listening socket until the VM has ended.
///
/// # Errors
/// The VM or the directory is not there; no connection can be taken.
pub fn run(order: &Order, listener: OwnedFd) -> Result<(), OrderError> {
    let mut export = Export::new(&order.directory)?;
    if order.read_only {
        export = export.read_only();
    }
    if let Some(allowed) = &order.allowed {
        export = export.only(allowed);
    }
    let (pid, started) = order.vm;
    let vm = hold(pid, started).ok_or(OrderError::NoVm { pid })?;
    let (tell, ended) = std::sync::mpsc::channel();
    let over = tell.clone();
    std::thread::spawn(move || {
        let mut watched = [PollFd::new(&vm, PollFlags::IN)];
        while poll(&mut watched, None).is_err() {}
        // Whoever waits may have its answer already.
        let _ = over.send(Ok(()));
    });
    std::thread::spawn(move || {
        let listener = UnixListener::from(listener);
        let _ = tell.send(serve(&listener, export));
    });
    // Each of the two threads sends once before it ends.
    Ok(ended.recv().unwrap_or(Ok(()))?)
}

/// A descriptor of the process, if it is the one that was started then.
fn hold(pid: u32, started: u64) -> Option<OwnedFd> {
    let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let held = pidfd_open(number, PidfdFlags::empty()).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; the start is the 20th field after it.
    let rest = stat.rsplit_once(')')?.1;
    let found: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    (found == started).then_some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_held_only_if_it_is_the_one() {
        let me = std::process::id();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
        let started: u64 = started.parse().unwrap();
        assert!(hold(me, started).is_some());
        assert!(hold(me, started + 1).is_none());
        assert!(hold(u32::MAX, started).is_none());
    }
}
