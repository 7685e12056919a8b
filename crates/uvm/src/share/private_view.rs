//! What virtiofsd gets to see, where that is less than the directory: a read-only view of it, or one
//! file of it.
//!
//! The view is made of mounts in a mount namespace of its own, which belongs to a thread that ends as
//! soon as it has started virtiofsd, and then to virtiofsd alone: it is seen nowhere else on the host,
//! and gone when the server is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use coracle_vmm::process::stderr_pipe;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use super::ServerError;
use crate::options::VirtioFsServer;

/// What is served.
#[derive(Debug)]
pub(super) enum View {
    /// The directory as it is.
    Plain(PathBuf),
    /// The directory, without a way to write.
    ReadOnly(PathBuf),
    /// One file of it.
    File { folder: PathBuf, name: OsString, read_only: bool },
}

/// Starts virtiofsd, to accept at `listener`. `folder` is a place for the view, called `name`.
pub(super) async fn spawn(
    mut command: Command,
    options: &VirtioFsServer,
    folder: &Path,
    name: &str,
    listener: UnixListener,
    view: View,
) -> Result<(Child, Receiver), ServerError> {
    let program = command.as_std().get_program().to_owned();
    // With a socket's path instead of its descriptor, Debian 12's leaves a file in /run.
    command.arg("--fd=0").stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(Stdio::null()).process_group(0);
    let failed =
        |source| ServerError::Spawn { command: program.to_string_lossy().into_owned(), source };
    let (stderr, complaints) = stderr_pipe().map_err(failed)?;
    command.stderr(Stdio::from(stderr));
    let serve = |command: &mut Command, directory: &Path| {
        let mut source = OsString::from("source=");
        source.push(directory);
        let cache = format!("cache={}", options.cache.name());
        command.arg("-o").arg(source).args(["-o", &cache]).args(&options.extra_args);
    };
    if let View::Plain(directory) = &view {
        serve(&mut command, directory);
        return command.spawn().map(|child| (child, complaints)).map_err(failed);
    }
    let point = point(folder, name);
    serve(&mut command, &point);
    let handle = tokio::runtime::Handle::current();
    let at = point.clone();
    let spawned = tokio::task::spawn_blocking(move || {
        fs::create_dir(&at).map_err(|source| view.failed(source))?;
        // Started by a thread that is in the namespace; children are told to the runtime.
        let thread = std::thread::spawn(move || {
            view.make(&at).map_err(|errno| view.failed(errno.into()))?;
            let _runtime = handle.enter();
            command.spawn().map_err(failed_of(&command))
        });
        thread.join().unwrap_or_else(|_| Err(ServerError::Ended { said: String::new() }))
    });
    let spawned = spawned.await.unwrap_or_else(|_| {
        Err(ServerError::Ended { said: "the runtime is shut down".to_owned() })
    });
    if spawned.is_err() {
        remove(folder, name);
    }
    spawned.map(|child| (child, complaints))
}

/// The mount point of a view: on the host an empty folder.
fn point(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.view"))
}

/// Removes the mount point, if there is one. The server must be gone: a folder that is removed here
/// takes what is mounted on it elsewhere along.
pub(super) fn remove(folder: &Path, name: &str) {
    let _ = fs::remove_dir(point(folder, name));
}

fn failed_of(command: &Command) -> impl FnOnce(io::Error) -> ServerError + use<> {
    let command = command.as_std().get_program().to_string_lossy().into_owned();
    move |source| ServerError::Spawn { command, source }
}

impl View {
    /// Makes the view at `point`, in a namespace of this thread's own.
    fn make(&self, point: &Path) -> Result<(), Errno> {
        const NONE: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        let bind = |from: &Path, to: &Path, read_only: bool| {
            mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?;
            if read_only {
                let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                mount(NONE, to, NONE, flags, NONE)?;
            }
            Ok::<_, Errno>(())
        };
        match self {
            Self::Plain(_) => Ok(()),
            Self::ReadOnly(directory) => bind(directory, point, true),
            Self::File { folder, name, read_only } => {
                let options = Some("size=64k,mode=700");
                mount(Some("view"), point, Some("tmpfs"), MsFlags::empty(), options)?;
                let seen = point.join(name);
                fs::File::create(&seen).map_err(|error| {
                    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
                })?;
                bind(&folder.join(name), &seen, *read_only)?;
                // Nothing but the file shall be written to.
                let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                mount(NONE, point, NONE, flags, NONE)
            }
        }
    }

    fn failed(&self, source: io::Error) -> ServerError {
        let (what, path) = match self {
            Self::Plain(directory) => ("plain", directory.clone()),
            Self::ReadOnly(directory) => ("read-only", directory.clone()),
            Self::File { folder, name, .. } => ("single-file", folder.join(name)),
        };
        ServerError::View { what, path, source }
    }
}
