//! Pipes: a unix socket of the host appears as one in the guest.
//!
//! The guest's socket is served by the agent, which dials a port of the host for each connection; the
//! port is a link in the channel's folder to the host's socket. So there is no process between, the
//! server behind the socket may come and go, each connection has its own end-of-file in both
//! directions, and a path of any length will do.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::PathBuf;

use coracle_bridge::message::{Pipe, Resource, Verb};
use serde::{Deserialize, Serialize};

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::plug::to_the_end;

/// The port of the first pipe.
const FIRST_PORT: u32 = 0x6000_0000;

/// Where pipes appear in the guest when nothing else is said: below this, at the host's own path.
const FOLDER: &str = "/run/pipes";

/// The pipes of a VM, by host path.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Pipes {
    counter: u32,
    there: BTreeMap<String, There>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct There {
    port: u32,
    uvm_path: String,
    /// It is being made or removed.
    is_underway: bool,
}

/// A pipe (seed `PipeMount`).
#[derive(Debug)]
pub struct PipeMount {
    /// The socket on the host, as given.
    pub host_path: String,
    /// The socket in the guest.
    pub uvm_path: String,
    vm: UtilityVm,
}

impl PipeMount {
    /// Takes the pipe away.
    ///
    /// # Errors
    /// As [`UtilityVm::remove_pipe`].
    #[doc(alias = "Release")]
    pub async fn release(&self) -> Result<()> {
        self.vm.remove_pipe(&self.host_path).await
    }
}

impl UtilityVm {
    /// Makes a unix socket of the host appear in the guest, at `/run/pipes` and the socket's own path.
    ///
    /// Pipes are not counted: adding one that is there is an error, as on the seed's host.
    ///
    /// # Errors
    /// As [`UtilityVm::add_pipe_at`].
    #[doc(alias = "AddPipe")]
    pub async fn add_pipe(&self, host_path: &str) -> Result<PipeMount> {
        let at = format!("{FOLDER}/{}", host_path.trim_start_matches('/'));
        self.add_pipe_at(host_path, &at).await
    }

    /// As [`UtilityVm::add_pipe`], at a guest path of the caller's choice.
    ///
    /// # Errors
    /// There is no socket at `host_path`; it is a pipe already ([`UvmError::AlreadyAttached`]); the
    /// guest refuses: nothing is left then.
    pub async fn add_pipe_at(&self, host_path: &str, uvm_path: &str) -> Result<PipeMount> {
        let (vm, host, guest) = (self.clone(), host_path.to_owned(), uvm_path.to_owned());
        let add = async move {
            vm.machine.add_pipe(&host, guest.clone()).await?;
            Ok(PipeMount { host_path: host, uvm_path: guest, vm })
        };
        to_the_end(add, |pipe: PipeMount| async move {
            if let Err(error) = pipe.release().await {
                tracing::error!(%error, "a pipe nobody wants stays");
            }
        })
        .await
    }

    /// The handles of all pipes there are: for who has adopted the VM.
    pub fn pipes(&self) -> Vec<PipeMount> {
        let all = locked(&self.machine.pipes).list();
        let handle = |(host_path, uvm_path)| PipeMount { host_path, uvm_path, vm: self.clone() };
        all.into_iter().map(handle).collect()
    }

    /// Takes a pipe away; its connections end.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`]; the guest cannot remove it: it can be tried again.
    #[doc(alias = "RemovePipe")]
    pub async fn remove_pipe(&self, host_path: &str) -> Result<()> {
        let (machine, host) = (self.machine.clone(), host_path.to_owned());
        to_the_end(async move { machine.remove_pipe(&host).await }, |()| async {}).await
    }
}

impl Machine {
    async fn add_pipe(&self, host_path: &str, uvm_path: String) -> Result<()> {
        self.running_guest("add a pipe")?;
        let failed = |operation, source| UvmError::Source {
            operation,
            path: PathBuf::from(host_path),
            source,
        };
        let kind = std::fs::metadata(host_path).map_err(|e| failed("examine the pipe", e))?;
        if !kind.file_type().is_socket() {
            let wrong = io::Error::new(io::ErrorKind::InvalidInput, "it is no unix socket");
            return Err(failed("use as a pipe", wrong));
        }
        let whole = std::path::absolute(host_path).map_err(|e| failed("examine the pipe", e))?;
        let there = {
            let mut pipes = locked(&self.pipes);
            if pipes.there.contains_key(host_path) {
                return Err(UvmError::AlreadyAttached);
            }
            pipes.counter += 1;
            let there = There { port: FIRST_PORT + pipes.counter, uvm_path, is_underway: true };
            pipes.there.insert(host_path.to_owned(), there.clone());
            there
        };
        let link = self.link(there.port);
        let made = async {
            self.intend("add a pipe").await?;
            symlink(&whole, &link).map_err(|e| failed("link to the pipe", e))?;
            let asked = self.ask_guest(Verb::Add, there.resource()).await;
            asked.map_err(|source| {
                // The link was ours a moment ago.
                let _ = std::fs::remove_file(&link);
                let operation = "failed to add the pipe";
                UvmError::Modify { operation, object: host_path.to_owned(), source }
            })
        };
        let made = made.await;
        match &made {
            Ok(()) => locked(&self.pipes).settle(host_path),
            Err(_) => drop(locked(&self.pipes).there.remove(host_path)),
        }
        self.note().await;
        made
    }

    async fn remove_pipe(&self, host_path: &str) -> Result<()> {
        self.running_guest("remove a pipe")?;
        let there = locked(&self.pipes).take(host_path).ok_or(UvmError::NotAttached)?;
        let removed = async {
            self.intend("remove a pipe").await?;
            self.ask_guest(Verb::Remove, there.resource()).await.map_err(|source| {
                let operation = "failed to remove the pipe";
                UvmError::Modify { operation, object: host_path.to_owned(), source }
            })
        };
        let removed = removed.await;
        if removed.is_ok() {
            // Nobody dials it any more.
            let _ = std::fs::remove_file(self.link(there.port));
            locked(&self.pipes).there.remove(host_path);
        } else {
            locked(&self.pipes).settle(host_path);
        }
        self.note().await;
        removed
    }

    /// Takes away what was on its way in or out when this VM's former owner died. The guest may never
    /// have heard of it.
    pub(crate) async fn clear_pipes(&self) {
        let underway: Vec<(String, There)> = {
            let pipes = locked(&self.pipes);
            let underway = pipes.there.iter().filter(|(_, there)| there.is_underway);
            underway.map(|(path, there)| (path.clone(), there.clone())).collect()
        };
        for (path, there) in underway {
            self.forget_in_guest(&path, there.resource()).await;
            let _ = std::fs::remove_file(self.link(there.port));
            locked(&self.pipes).there.remove(&path);
        }
    }

    fn link(&self, port: u32) -> PathBuf {
        self.channel.path().join(format!("vsock_{port}"))
    }
}

impl Pipes {
    fn take(&mut self, host_path: &str) -> Option<There> {
        let there = self.there.get_mut(host_path).filter(|there| !there.is_underway)?;
        there.is_underway = true;
        Some(there.clone())
    }

    fn settle(&mut self, host_path: &str) {
        if let Some(there) = self.there.get_mut(host_path) {
            there.is_underway = false;
        }
    }

    /// Those that are there, by host path, with their guest path.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        let there = self.there.iter().filter(|(_, there)| !there.is_underway);
        there.map(|(host, there)| (host.clone(), there.uvm_path.clone())).collect()
    }
}

impl There {
    fn resource(&self) -> Resource {
        Resource::Pipe(Pipe { path: self.uvm_path.clone(), port: self.port })
    }
}
