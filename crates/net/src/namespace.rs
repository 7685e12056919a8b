//! Network namespaces of the host.
//!
//! A namespace belongs to a thread, so whatever is done in one is done by a thread made for it, which
//! ends with the work: no thread of a runtime is ever left in the wrong place.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{NetError, Result};

/// An open network namespace, which lives at least as long.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The one this thread is in.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one that is mounted at `path`, or that a file of `/proc` names.
    ///
    /// # Errors
    /// It cannot be opened, or is no namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| file("open the network namespace", path, source);
        let namespace = Self(File::open(path).map_err(failed)?);
        // Entering is the one thing that tells a namespace from any other file.
        namespace.run(|| Ok(()))?;
        Ok(namespace)
    }

    /// Makes one, with `lo` up, and mounts it at `path`, where it stays until [`delete`].
    ///
    /// # Errors
    /// There is something at `path`; not root. Nothing is left then.
    pub fn create(path: &Path) -> Result<Self> {
        let made = File::options().write(true).create_new(true).open(path);
        made.map_err(|source| file("make", path, source))?;
        let kept = on_a_thread(|| {
            let failed =
                |source: nix::Error| file("make a network namespace at", path, source.into());
            unshare(CloneFlags::CLONE_NEWNET).map_err(failed)?;
            let (own, nothing) = (Some("/proc/thread-self/ns/net"), None::<&str>);
            mount(own, path, nothing, MsFlags::MS_BIND, nothing).map_err(failed)?;
            crate::link::up("lo")
        });
        let opened = kept.and_then(|()| Self::open(path));
        if opened.is_err() {
            // What failed first is what counts.
            drop(delete(path));
        }
        opened
    }

    /// Runs `work` in it.
    ///
    /// # Errors
    /// It cannot be entered; what `work` says.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            let entered = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET);
            entered.map_err(|source| NetError::System {
                what: "enter a network namespace",
                source: source.into(),
            })?;
            work()
        })
    }

    /// Which one it is: no two namespaces that are there have the same.
    ///
    /// # Errors
    /// The descriptor is of no use any more.
    pub fn identity(&self) -> Result<(u64, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = self.0.metadata();
        let system = |source| NetError::System { what: "look at a network namespace", source };
        metadata.map(|m| (m.dev(), m.ino())).map_err(system)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes away the mount that keeps a namespace, and its file. The namespace ends with the last process
/// and descriptor in it. There being none is success.
///
/// # Errors
/// It cannot be unmounted or removed.
pub fn delete(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(source) => return Err(file("unmount the network namespace", path, source.into())),
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(file("remove", path, source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs `work` on a thread that is in this one's network namespace and sees it in `/sys`, which shows
/// the namespace it was mounted in. Nobody else sees that mount, and it ends with the thread.
pub(crate) fn with_own_sysfs<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        let failed = |source: nix::Error| NetError::System {
            what: "see a network namespace in /sys",
            source: source.into(),
        };
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, "/", nothing, private, nothing).map_err(failed)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing).map_err(failed)?;
        work()
    })
}

fn file(what: &'static str, path: &Path, source: io::Error) -> NetError {
    NetError::File { what, path: path.to_owned(), source }
}

/// Runs `work` on a thread of its own, which begins in the namespaces of this one.
pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|_| {
            let source = io::Error::other("the thread ended before its work");
            Err(NetError::System { what: "work in a network namespace", source })
        })
    })
}
