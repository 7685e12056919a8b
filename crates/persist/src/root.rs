//! Where states are kept, and the files that belong to no sandbox.

use crate::id::SandboxId;
use crate::store::{Disk, StoreError};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// Where Kata keeps states. Normally lost at a reboot.
pub const KATA_ROOT: &str = "/run/vc";
/// Where coracle keeps states.
pub const ROOT: &str = "/var/lib/coracle";
/// Directories of sandboxes are in this one.
pub(crate) const SANDBOXES: &str = "sbs";
/// Directories of VMs are in this one.
const VMS: &str = "vm";
/// Where sandboxes are moved to be deleted.
pub(crate) const TRASH: &str = ".trash";

/// Why a file that belongs to no sandbox was not read or written.
#[derive(Debug, Error)]
pub enum GlobalError {
    /// The path leads out of the root, or is none.
    #[error("{path:?} is no path beneath {}", root.display())]
    Escapes {
        /// The path.
        path: String,
        /// The root.
        root: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was to be done.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A directory that states are kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// States under `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the directories of sandboxes are.
    pub fn run_storage_path(&self) -> PathBuf {
        self.path.join(SANDBOXES)
    }

    /// Where the directories of VMs are.
    pub fn run_vm_storage_path(&self) -> PathBuf {
        self.path.join(VMS)
    }

    /// The directory of a sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.run_storage_path().join(id)
    }

    /// Makes the directory of a sandbox, and those it is in, so that they survive a power cut.
    pub(crate) fn make_sandbox(&self, disk: &Disk, id: &SandboxId) -> Result<(), StoreError> {
        let dir = self.make(disk, &[SANDBOXES]).map_err(self.failed("make", id))?;
        match disk.make_dir(&dir, id.as_str()) {
            Ok(()) => disk.sync_dir(&dir).map_err(self.failed("make", id)),
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.failed("make", id)(errno)),
        }
    }

    /// Makes directories in the root, one in another, and opens the last.
    pub(crate) fn make(&self, disk: &Disk, names: &[&str]) -> Result<OwnedFd, Errno> {
        let mut dir = self.open_or_make(disk)?;
        for name in names {
            match disk.make_dir(&dir, name) {
                Ok(()) => disk.sync_dir(&dir)?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            dir = beneath(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        }
        Ok(dir)
    }

    fn open_or_make(&self, disk: &Disk) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
        match open(&self.path) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let missing: Vec<&Path> = self
            .path
            .ancestors()
            .take_while(|path| matches!(open(path), Err(Errno::NOENT)))
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        for path in missing.into_iter().rev() {
            match rustix::fs::mkdir(path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let parent = path.parent().filter(|path| !path.as_os_str().is_empty());
            disk.sync_dir(open(parent.unwrap_or(Path::new(".")))?)?;
        }
        open(&self.path)
    }

    /// Writes a file that belongs to no sandbox: all of it or nothing. Directories on its way are
    /// made. A leading `/` means the root.
    ///
    /// # Errors
    /// When the path leads out of the root, and when the system refuses.
    #[doc(alias = "GlobalWrite")]
    pub fn global_write(&self, disk: &Disk, path: &str, data: &[u8]) -> Result<(), GlobalError> {
        let (dirs, file) = self.steps(path)?;
        let failed = self.global("write", path);
        let write = || {
            let dir = self.make(disk, &dirs)?;
            if crate::store::is_dir(&dir, file)? {
                return Err(Errno::ISDIR);
            }
            let temporary = format!(".{file}.new.{}", std::process::id());
            disk.unlink(&dir, &temporary)?;
            let new = disk.create(&dir, &temporary)?;
            let done = disk
                .write(&new, data, 0)
                .and_then(|()| disk.sync(&new))
                .and_then(|()| disk.rename(&dir, &temporary, file));
            if done.is_err() {
                let _ = disk.unlink(&dir, &temporary);
            }
            done?;
            disk.sync_dir(&dir)
        };
        write().map_err(failed)
    }

    /// All of a file that belongs to no sandbox.
    ///
    /// # Errors
    /// When there is none, when the path leads out of the root, and when the system refuses.
    #[doc(alias = "GlobalRead")]
    pub fn global_read(&self, path: &str) -> Result<Vec<u8>, GlobalError> {
        let (dirs, file) = self.steps(path)?;
        let inner = dirs.iter().chain([&file]).copied().collect::<Vec<_>>().join("/");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .and_then(|root| beneath(root, &inner, OFlags::RDONLY | OFlags::NONBLOCK))
            .and_then(crate::store::read_all)
            .map_err(self.global("read", path))
    }

    fn steps<'a>(&self, path: &'a str) -> Result<(Vec<&'a str>, &'a str), GlobalError> {
        let mut steps = steps(path, &self.path)?;
        let file = steps.pop().ok_or_else(|| escapes(path, &self.path))?;
        Ok((steps, file))
    }

    fn global(&self, verb: &'static str, path: &str) -> impl FnOnce(Errno) -> GlobalError + use<> {
        let path = self.path.join(path.trim_start_matches('/'));
        move |errno| GlobalError::Io { verb, path, source: errno.into() }
    }

    fn failed(
        &self,
        verb: &'static str,
        id: &SandboxId,
    ) -> impl FnOnce(Errno) -> StoreError + use<> {
        crate::store::io(verb, &self.sandbox(id))
    }
}

/// A path beneath a root, step by step; at least one. A leading `/` means the root.
pub(crate) fn steps<'a>(path: &'a str, root: &Path) -> Result<Vec<&'a str>, GlobalError> {
    let mut steps = Vec::new();
    for step in Path::new(path).components() {
        match step {
            Component::Normal(name) => {
                steps.push(name.to_str().ok_or_else(|| escapes(path, root))?);
            }
            Component::RootDir | Component::CurDir => {}
            // Kata lets this leave the root.
            Component::ParentDir | Component::Prefix(_) => return Err(escapes(path, root)),
        }
    }
    if steps.is_empty() { Err(escapes(path, root)) } else { Ok(steps) }
}

fn escapes(path: &str, root: &Path) -> GlobalError {
    GlobalError::Escapes { path: path.to_owned(), root: root.to_owned() }
}

/// Opens something that a directory holds; neither `..` nor a link leads out of it.
fn beneath(dir: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}
