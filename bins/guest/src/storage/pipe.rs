//! Sockets in the guest that stand for sockets on the host.
//!
//! Each connection to one is a connection of the channel, with its own end-of-file in both
//! directions; the host's side of the port is the real socket. A pipe that is removed takes its
//! connections along.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use coracle_bridge::channel::GuestChannel;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::mount::{MountError, check_path};

/// Bytes carried at once.
const PIECE: usize = 64 * 1024;

/// Why a pipe could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The path is none we take.
    #[error(transparent)]
    Path(#[from] MountError),
    /// There is one already.
    #[error("there is a pipe at {} already", path.display())]
    Exists {
        /// Its path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("listening on {}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The pipes of the guest, by path.
#[derive(Debug, Default)]
pub struct Pipes(Mutex<HashMap<PathBuf, Serving>>);

#[derive(Debug)]
struct Serving {
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pipes {
    /// Listens at `path`; must be called within the runtime.
    pub fn add(&self, channel: GuestChannel, path: &Path, port: u32) -> Result<(), PipeError> {
        check_path(path)?;
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.contains_key(path) {
            return Err(PipeError::Exists { path: path.to_owned() });
        }
        let failed = |source| PipeError::Listen { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let _streams = channel.runtime().enter();
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever can reach the path may use it: a container's user need not be root.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        let task = tokio::spawn(serve(listener, channel, port));
        pipes.insert(path.to_owned(), Serving { task });
        Ok(())
    }

    /// Takes the pipe at `path` away; there being none is what was wanted.
    pub fn remove(&self, path: &Path) -> Result<(), PipeError> {
        check_path(path)?;
        let mut pipes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.remove(path).is_some() {
            // It is ours; somebody in the VM may have removed it.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

async fn serve(listener: UnixListener, channel: GuestChannel, port: u32) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((guest, _)) => {
                    connections.spawn(carry(guest, channel.clone(), port));
                }
                Err(error) => {
                    // Too many open files, perhaps; there will be fewer.
                    tracing::warn!(%error, port, "a pipe cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut guest: UnixStream, channel: GuestChannel, port: u32) {
    let mut host = match channel.dial(port).await {
        Ok(host) => host,
        // The guest's end is closed, as it is when a server dies.
        Err(error) => return tracing::info!(%error, port, "nobody serves a pipe"),
    };
    // An end that breaks takes the other along; there is nobody to tell.
    let _ = copy_bidirectional_with_sizes(&mut guest, &mut host, PIECE, PIECE).await;
}
