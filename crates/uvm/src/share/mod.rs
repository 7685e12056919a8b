//! Directories and files of the host, seen in the guest: by virtio-fs, fast, or by 9P.
//!
//! ```text
//!   add:    start the server ─► (virtio-fs: plug in its device) ─► the guest mounts
//!   remove: the guest unmounts ─► (unplug) ─► stop the server
//! ```
//!
//! Shares are not counted and not merged: each add makes one, also a second of one directory at one
//! guest path, where mounts stack. A server that dies breaks its share; that is noticed, told by
//! [`Plan9Share::is_broken`] and [`VirtioFsShare::is_broken`], and not healed: what the guest had open
//! is lost with it.

pub(crate) mod plan9;
mod private_view;
pub mod server;
mod sidecar;
pub(crate) mod virtiofs;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_plan9::ExportError;
use coracle_vmm::cgroup;
use coracle_vmm::process::{PART, ProcessIdentity, enter_before_exec, processes_with};
use serde::{Deserialize, Serialize};

use crate::lifecycle::{Machine, locked};

pub use plan9::Plan9Share;
pub(crate) use sidecar::Sidecar;
pub use virtiofs::VirtioFsShare;

/// The server of a share did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directory cannot be served.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The host path cannot be used.
    #[error("examine {}", path.display())]
    Source {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no program to serve it.
    #[error("there is no virtiofsd (looked for {})", looked.join(", "))]
    NoProgram {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// Its socket.
    #[error("{operation} {}", path.display())]
    Socket {
        /// `listen on`, `connect to`.
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The view of the directory that the server gets.
    #[error("make a {what} view of {}", path.display())]
    View {
        /// `read-only` or `single-file`.
        what: &'static str,
        /// The path shared.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its command cannot be run.
    #[error("run {command:?}")]
    Spawn {
        /// The command.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("the server ended before it was ready: {said}")]
    Ended {
        /// What it said.
        said: String,
    },
}

/// The shares of a VM.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// The number of the next 9P share, from 0; its name.
    plan9: u64,
    /// The number of the next virtio-fs share.
    virtiofs: u64,
    /// By the name of their server.
    there: BTreeMap<String, There>,
}

/// A share that is there, or on its way in or out.
#[derive(Debug)]
struct There {
    facts: Facts,
    server: Option<Arc<Server>>,
}

/// What is to be known of a share in order to take it away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    kind: Kind,
    /// Where the guest has it: the directory, or the file in it.
    uvm_path: String,
    /// Where it is mounted.
    mount_path: String,
    /// Its server, if that is a process.
    server: Option<ProcessIdentity>,
    /// It is being made or removed.
    is_underway: bool,
    /// The connection between guest and server was lost with the keeper that carried it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_cut: bool,
}

/// How it is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// By 9P at a port; shares are named by numbers.
    Plan9 { name: String, port: u32 },
    /// By virtio-fs; a device is named by its tag.
    VirtioFs { tag: String },
}

/// The shares as they are written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedShares {
    plan9: u64,
    virtiofs: u64,
    there: BTreeMap<String, Facts>,
}

impl SavedShares {
    /// The processes that serve them.
    pub(crate) fn servers(&self) -> Vec<ProcessIdentity> {
        self.there.values().filter_map(|facts| facts.server).collect()
    }

    /// Shares on their way in or out.
    fn underway(&self) -> impl Iterator<Item = (&String, &Facts)> {
        self.there.iter().filter(|(_, facts)| facts.is_underway)
    }
}

impl Shares {
    pub(crate) fn save(&self) -> SavedShares {
        let with_server = |(name, there): (&String, &There)| {
            let server = there.server.as_ref().and_then(|server| server.identity());
            (name.clone(), Facts { server, ..there.facts.clone() })
        };
        SavedShares {
            plan9: self.plan9,
            virtiofs: self.virtiofs,
            there: self.there.iter().map(with_server).collect(),
        }
    }

    /// As they were written down, with the servers that still live.
    pub(crate) fn restore(saved: &SavedShares) -> Self {
        let adopt = |(name, facts): (&String, &Facts)| {
            let server = Server::adopt(facts.server.as_ref());
            (name.clone(), There { facts: facts.clone(), server: Some(Arc::new(server)) })
        };
        Self {
            plan9: saved.plan9,
            virtiofs: saved.virtiofs,
            there: saved.there.iter().map(adopt).collect(),
        }
    }

    /// A share is about to be made.
    fn arrive(&mut self, name: &str, facts: Facts) {
        self.there.insert(name.to_owned(), There { facts, server: None });
    }

    fn serve(&mut self, name: &str, server: Arc<Server>) {
        if let Some(there) = self.there.get_mut(name) {
            there.server = Some(server);
        }
    }

    fn server(&self, name: &str) -> Option<Arc<Server>> {
        self.there.get(name).and_then(|there| there.server.clone())
    }

    /// The channel was lost: 9P runs over it, and what was open is lost with its connection.
    pub(crate) fn cut_off(&mut self) {
        for there in self.there.values_mut() {
            there.facts.is_cut |= matches!(there.facts.kind, Kind::Plan9 { .. });
        }
    }

    fn is_cut(&self, name: &str) -> bool {
        self.there.get(name).is_some_and(|there| there.facts.is_cut)
    }

    fn mark(&mut self, name: &str, is_underway: bool) {
        if let Some(there) = self.there.get_mut(name) {
            there.facts.is_underway = is_underway;
        }
    }
}

/// A share's server.
#[derive(Debug)]
enum Server {
    Task(plan9::TaskServer),
    Process(sidecar::Sidecar),
    /// It died before this process could take charge of it.
    Gone,
}

impl Server {
    fn adopt(identity: Option<&ProcessIdentity>) -> Self {
        let found = identity.and_then(|identity| {
            let found = sidecar::Sidecar::adopt(identity);
            found.inspect_err(|error| tracing::warn!(%error, "cannot adopt a server")).ok()?
        });
        found.map_or(Self::Gone, Self::Process)
    }

    fn identity(&self) -> Option<ProcessIdentity> {
        match self {
            Self::Task(_) | Self::Gone => None,
            Self::Process(sidecar) => Some(sidecar.identity()),
        }
    }

    fn is_dead(&self) -> bool {
        match self {
            Self::Task(task) => task.is_over(),
            Self::Process(sidecar) => sidecar.is_dead(),
            Self::Gone => true,
        }
    }

    /// What a process said, if it is dead or is about to be.
    async fn last_words_if_dead(&self, limit: Duration) -> Option<String> {
        match self {
            Self::Task(_) | Self::Gone => None,
            Self::Process(sidecar) => {
                tokio::time::timeout(limit, sidecar.ended()).await.ok()?;
                Some(sidecar.last_words())
            }
        }
    }

    async fn stop(&self, limit: Duration) {
        match self {
            Self::Task(task) => task.stop(),
            Self::Process(sidecar) => sidecar.stop(limit).await,
            Self::Gone => {}
        }
    }
}

impl crate::UtilityVm {
    /// The names of all 9P shares and the tags of all virtio-fs shares there are: for who has adopted
    /// the VM.
    pub fn share_names(&self) -> (Vec<String>, Vec<String>) {
        let (mut nine, mut tags) = (Vec::new(), Vec::new());
        for there in locked(&self.machine.shares).there.values() {
            match &there.facts.kind {
                _ if there.facts.is_underway => {}
                Kind::Plan9 { name, .. } => nine.push(name.clone()),
                Kind::VirtioFs { tag } => tags.push(tag.clone()),
            }
        }
        (nine, tags)
    }
}

impl Machine {
    /// Ends the servers of all shares: their VM is gone.
    pub(crate) async fn stop_servers(&self) {
        let shares = std::mem::take(&mut locked(&self.shares).there);
        for (name, there) in shares {
            tracing::debug!(name, "stopping the server of a share");
            self.stop_one(&name, there).await;
        }
    }

    /// Ends the server of one share, and forgets the share.
    async fn stop_server(&self, name: &str) {
        let there = locked(&self.shares).there.remove(name);
        if let Some(there) = there {
            self.stop_one(name, there).await;
        }
    }

    async fn stop_one(&self, name: &str, there: There) {
        if let Some(server) = there.server {
            server.stop(self.host.cleanup_timeout).await;
        }
        private_view::remove(self.channel.path(), name);
    }

    /// Takes away the shares that were on their way in or out when this VM's former owner died. The
    /// guest may never have heard of them, and a server may run of which nobody wrote down who it is.
    pub(crate) async fn clear_shares(&self, saved: &SavedShares) {
        for (name, facts) in saved.underway() {
            let part = self.part(name);
            match &facts.kind {
                Kind::Plan9 { name: share, port } => {
                    let mount = plan9::directory(&facts.mount_path, *port, share, false);
                    self.forget_in_guest(&facts.mount_path, mount).await;
                }
                Kind::VirtioFs { tag } => {
                    let mount = virtiofs::directory(tag, &facts.mount_path, false);
                    self.forget_in_guest(&facts.mount_path, mount).await;
                    self.unplug_leftover(&virtiofs::device_id(tag)).await;
                }
            }
            self.stop_server(name).await;
            for stray in processes_with(&part) {
                if let Ok(Some(stray)) = sidecar::Sidecar::adopt(&stray) {
                    stray.stop(self.host.cleanup_timeout).await;
                }
            }
            if let Kind::Plan9 { port, .. } = &facts.kind {
                let _ = std::fs::remove_file(self.channel.path().join(format!("vsock_{port}")));
            }
        }
    }
}

impl Machine {
    /// What a server's environment says of it, so that it is found whoever started it and died.
    pub(crate) fn part(&self, name: &str) -> (String, String) {
        (PART.to_owned(), format!("{}/{name}", self.channel.path().display()))
    }

    /// Makes a program a part of the VM: its environment says so, and it runs in the VM's control
    /// group, if there is one.
    fn make_part(&self, command: &mut tokio::process::Command, name: &str) {
        // Nothing to be undone here: it can only be died of.
        drop(self.host.effects.announce("server.spawn"));
        let (variable, value) = self.part(name);
        command.env(variable, value);
        let Some(group) = &self.vm.identity().cgroup else { return };
        match cgroup::entry(group) {
            Ok(entry) => enter_before_exec(command.as_std_mut(), entry),
            Err(error) => tracing::warn!(name, %error, "it runs outside of its VM's control group"),
        }
    }
}

/// A path as it is now: a directory, or a directory and a name in it.
fn split(path: &Path) -> Result<(PathBuf, Option<std::ffi::OsString>), ServerError> {
    let failed = |source| ServerError::Source { path: path.to_owned(), source };
    let whole = path.canonicalize().map_err(failed)?;
    if whole.is_dir() {
        return Ok((whole, None));
    }
    // A path that is no directory has a name and a parent.
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    Ok((parent.to_owned(), Some(name.to_owned())))
}
