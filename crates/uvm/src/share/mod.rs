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

use crate::lifecycle::{Machine, locked};

pub use plan9::Plan9Share;
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

/// What stands behind the shares of a VM.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// The number of the next 9P share, from 0; its name.
    plan9: u64,
    /// The number of the next virtio-fs share.
    virtiofs: u64,
    /// The servers that run, by the name of their share.
    servers: BTreeMap<String, Arc<Server>>,
}

/// A share's server.
#[derive(Debug)]
enum Server {
    Task(plan9::TaskServer),
    Process(sidecar::Sidecar),
}

impl Server {
    fn is_dead(&self) -> bool {
        match self {
            Self::Task(task) => task.is_over(),
            Self::Process(sidecar) => sidecar.is_dead(),
        }
    }

    /// What a process said, if it is dead or is about to be.
    async fn last_words_if_dead(&self, limit: Duration) -> Option<String> {
        match self {
            Self::Task(_) => None,
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
        }
    }
}

impl Machine {
    /// Ends the servers of all shares: their VM is gone.
    pub(crate) async fn stop_servers(&self) {
        let servers = std::mem::take(&mut locked(&self.shares).servers);
        let limit = self.host.cleanup_timeout;
        for (name, server) in servers {
            tracing::debug!(name, "stopping the server of a share");
            server.stop(limit).await;
            private_view::remove(self.channel.path(), &name);
        }
    }

    async fn stop_server(&self, name: &str) {
        let server = locked(&self.shares).servers.remove(name);
        if let Some(server) = server {
            server.stop(self.host.cleanup_timeout).await;
            private_view::remove(self.channel.path(), name);
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
