//! What is on the host for a VM besides its process, and how all of it goes.

use std::path::PathBuf;

use crate::{cgroup, process::Process};

/// What a launch leaves behind when it fails half-way, or the VM at its end.
#[derive(Debug, Default)]
pub(crate) struct Debris {
    pub(crate) process: Option<Process>,
    pub(crate) sockets: Vec<PathBuf>,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Debris {
    /// Kills and removes all of it; complaints go to the log, since nobody can act on them.
    pub(crate) fn clear(&mut self) {
        if let Some(process) = self.process.take()
            && process.kill().is_ok()
        {
            process.reap();
        }
        for socket in self.sockets.drain(..) {
            match std::fs::remove_file(&socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(socket = %socket.display(), %error, "socket left behind");
                }
                Ok(()) | Err(_) => {}
            }
        }
        let Some(group) = self.cgroup.take() else { return };
        if let Err(error) = cgroup::remove(&group) {
            // Its sidecars may be in it still: whoever ends them removes it.
            tracing::debug!(%error, "a control group stays for now");
        }
    }

    /// What was debris until now is a VM: hands over its parts, which stay.
    pub(crate) fn keep(mut self) -> (Option<Process>, Vec<PathBuf>, Option<PathBuf>) {
        (self.process.take(), std::mem::take(&mut self.sockets), self.cgroup.take())
    }
}

impl Drop for Debris {
    fn drop(&mut self) {
        self.clear();
    }
}
