//! Containers, made by a short-lived child.
//!
//! libcontainer forks without leaving Rust, changes the caller's directory, its oom score and
//! whether it may be traced: nothing to do in the process that carries the bridge. So for each
//! operation the agent starts itself anew as a helper with one thread ([`main`] is its entry),
//! hands it a [`request`] in a file in memory and reads [`request::Reply`]s from a socket. The
//! processes a helper leaves behind are children of the agent, which reaps them.
//!
//! ```text
//!   agent: the specification settled, into its bundle ([`layout`])
//!   agent ──spawn──▶ helper create ──libcontainer──▶ init   (waits on its notify socket)
//!   agent ──spawn──▶ helper exec ──join, clone(PARENT)──▶ process   ([`exec`]: our own code)
//!   agent ──spawn──▶ helper delete ──libcontainer──▶ no processes, no cgroup, no state
//! ```

pub mod attach;
mod create;
mod delete;
pub mod devices;
mod exec;
mod executor;
mod identity;
pub mod launch;
mod layout;
pub mod request;
mod spec;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result};
use libcontainer::oci_spec::runtime::Spec;
use tracing_subscriber::filter::LevelFilter;

use crate::sys;
use request::{Failure, FailureKind, Request, descriptor};

pub use layout::{discard, lay_out, own, owner};
pub use spec::{is_valid_id, own_namespaces};

/// Where libcontainer keeps its state of each container.
const STATE: &str = "/run/gcs/runtime";

/// In a bundle, the socket on which a container's terminal is handed over.
const CONSOLE: &str = "console.sock";

/// Where the folders of containers are.
const BUNDLES: &str = "/run/gcs/c";

/// The folder of a container: its `config.json`, and its root when the host puts it there.
pub fn bundle(id: &str) -> PathBuf {
    Path::new(BUNDLES).join(id)
}

/// The folder of a container's cgroup.
pub fn cgroup_of(id: &str, spec: &Spec) -> PathBuf {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let path = path.unwrap_or_else(|| Path::new("/containers").join(id));
    Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(&path))
}

/// Removes the folder of a container that is deleted, once its root, which was in it, is gone.
pub fn forget_bundle_of(root: &Path) {
    if let Some(bundle) = root.parent()
        && bundle.parent() == Some(Path::new(BUNDLES))
    {
        // Not empty as long as the container is not deleted, which will remove it then.
        drop(fs::remove_dir(bundle));
    }
}

/// The folder of libcontainer's state of one container.
fn state(id: &str) -> PathBuf {
    Path::new(STATE).join(id)
}

/// The socket on which a container's init waits to be started.
pub fn start_socket(id: &str) -> PathBuf {
    state(id).join("notify.sock")
}

/// The helper: does the one thing it was started for.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Reported, as far as there was anyone to report to.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<()> {
    let request = sys::inherited(descriptor::REQUEST).context("no request was handed over")?;
    let reply = sys::inherited(descriptor::REPLY).context("no reply socket was handed over")?;
    let log = sys::inherited(descriptor::LOG).context("no log was handed over")?;
    // Errors inside libcontainer's children lose their cause on the way up; it is only in these.
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::ERROR)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_level(false)
        .with_writer(Mutex::new(File::from(log)))
        .init();
    let mut text = String::new();
    File::from(request).read_to_string(&mut text).context("reading the request")?;
    let request: Request = serde_json::from_str(&text).context("understanding the request")?;
    let reply = request::ReplySocket::new(reply);
    let result = match request {
        Request::Create { id, terminal } => create::create(&id, terminal, &reply),
        Request::Start { id } => delete::start(&id).and_then(|()| Ok(reply.ready()?)),
        Request::Exec(request) => {
            let init = sys::inherited(descriptor::INIT).context("no init was handed over")?;
            exec::exec(*request, &init, &reply)
        }
        Request::Devices { id, allowed } => {
            devices::allow(&id, &allowed).and_then(|()| Ok(reply.ready()?))
        }
        Request::Delete { id } => delete::delete(&id).and_then(|()| Ok(reply.ready()?)),
    };
    if let Err(error) = &result {
        let failure = match error.downcast_ref::<Failure>() {
            Some(failure) => failure.clone(),
            None => Failure { kind: FailureKind::Other, message: format!("{error:#}") },
        };
        // Nobody may be listening any more; the exit code says it too.
        drop(reply.failed(&failure));
    }
    result
}

/// Owned, because the caller keeps it open while a path through it is in use.
fn open_directory(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(directory.into())
}
