//! States in directories: Kata's layout, and a log in each.

use super::documents::{container_document, documents, file_of, whole};
use super::error::DriverError;
use super::load::load;
use super::verify::{Verified, verify};
use super::{By, Loaded, PersistDriver, Save, Saved};
use crate::codec::Tolerance;
use crate::id::{ContainerId, SandboxId};
use crate::lock::{Ask, Lock, LockError, Shown, flock};
use crate::model::ContainerState;
use crate::root::{Root, SANDBOXES, TRASH};
use crate::store::{self, Change, Disk, FILE, Folder, Generation, OWN_FILE, Print};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Sandboxes that stay open between saves; each holds two descriptors and the bytes of its state.
const OPEN_AT_ONCE: usize = 16;

/// How long a look that found something waits for whoever is saving.
const WRITERS: Duration = Duration::from_secs(5);

/// States in directories.
#[derive(Debug)]
pub struct FsDriver {
    name: &'static str,
    root: Root,
    disk: Arc<Disk>,
    tolerance: Tolerance,
    /// Sandboxes saved before, to find out what has changed.
    open: HashMap<SandboxId, Folder>,
    /// Kata's files that were read, so that replacing them is no surprise.
    read: HashMap<SandboxId, BTreeMap<String, Print>>,
}

impl FsDriver {
    /// A driver for the states under `root`.
    pub fn new(root: Root) -> Self {
        Self::with_disk("fs", root, Arc::new(Disk::default()))
    }

    /// The same under another name, or with a disk that fails on purpose.
    pub fn with_disk(name: &'static str, root: Root, disk: Arc<Disk>) -> Self {
        let (open, read) = (HashMap::new(), HashMap::new());
        Self { name, root, disk, tolerance: Tolerance::Strict, open, read }
    }

    /// A driver that reads Kata's files with this tolerance.
    #[must_use]
    pub fn tolerating(self, tolerance: Tolerance) -> Self {
        Self { tolerance, ..self }
    }

    /// Where its states are.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// A sandbox's directory as its last writer has left it.
    fn open(&mut self, id: &SandboxId) -> Result<Folder, DriverError> {
        let path = self.root.sandbox(id);
        if let Some(folder) = self.open.remove(id)
            && folder.is_at(&path)?
            && folder.is_current()?
        {
            return Ok(folder);
        }
        let mut folder = Folder::open(&path, Arc::clone(&self.disk))?;
        // What cannot be read is not written over.
        let log = folder.load(|log| whole(id, log).map(drop))?.transpose()?;
        if log.is_none()
            && let Some(files) = self.read.get(id)
        {
            folder.expect(files.iter().map(|(name, print)| (name.clone(), *print)));
        }
        Ok(folder)
    }

    /// Commits what has changed, if anything has.
    fn commit(
        &mut self,
        id: &SandboxId,
        mut folder: Folder,
        change: Change,
    ) -> Result<Saved, DriverError> {
        let changed = change.put.len() + change.delete.len();
        let mut saved = Saved { generation: folder.generation(), changed, notes: Vec::new() };
        if changed > 0 {
            // On an error nothing is remembered: the next save finds out what is there.
            let committed = folder.commit(change)?;
            for note in &committed.notes {
                tracing::warn!(sandbox = %id, "{note}");
            }
            (saved.generation, saved.notes) = (committed.generation, committed.notes);
            self.read.remove(id);
        }
        if self.open.len() >= OPEN_AT_ONCE {
            self.open.clear();
        }
        self.open.insert(id.clone(), folder);
        Ok(saved)
    }

    fn locked<'a>(&mut self, by: By<'a>, id: &SandboxId) -> Result<Shown<'a>, DriverError> {
        Shown::of(by, id, |ask| self.lock(id.as_str(), ask))
    }

    /// A sandbox's directory, for reading.
    pub(super) fn dir(&self, id: &SandboxId) -> Result<OwnedFd, DriverError> {
        let path = self.root.sandbox(id);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT) => Err(DriverError::Absent(id.clone())),
            Err(errno) => Err(store::io("open", &path)(errno).into()),
        }
    }

    /// Removes sandboxes that were being deleted.
    fn empty_trash(&self) {
        let path = self.root.path().join(TRASH);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(trash) = rustix::fs::open(&path, flags, Mode::empty()) else { return };
        for entry in store::entries(&trash).unwrap_or_default() {
            if let Err(errno) = self.disk.remove_tree(trash.as_fd(), &entry) {
                tracing::warn!(entry, %errno, "a deleted sandbox is not all removed yet");
            }
        }
    }
}

impl PersistDriver for FsDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn save(&mut self, by: By<'_>, save: Save<'_>) -> Result<Saved, DriverError> {
        let id = save.id()?;
        // First, so that what has no text leaves no directory behind.
        let mut put = documents(&id, &save)?;
        let lock = self.locked(by, &id)?;
        if !lock.is_held() {
            self.root.make_sandbox(&self.disk, &id)?;
        }
        let folder = self.open(&id)?;
        super::unchanged_since(&id, save.only_if, folder.generation())?;
        let stays = |name: &str| put.contains_key(name) || name == OWN_FILE;
        let delete = folder.names().filter(|name| !stays(name)).map(str::to_owned).collect();
        put.retain(|name, bytes| folder.content(name) != Some(&bytes[..]));
        self.commit(&id, folder, Change { put, delete })
    }

    fn save_container(
        &mut self,
        by: By<'_>,
        id: &str,
        container: &str,
        state: &ContainerState,
        only_if: Option<Generation>,
    ) -> Result<Saved, DriverError> {
        let id = SandboxId::new(id)?;
        ContainerId::new(container)?;
        let _lock = self.locked(by.to_what_is_there(), &id).map_err(super::absent)?;
        let folder = self.open(&id)?;
        if folder.content(FILE).is_none() {
            return Err(DriverError::Absent(id));
        }
        super::unchanged_since(&id, only_if, folder.generation())?;
        let (name, bytes) = (file_of(container), container_document(&id, container, state)?);
        let mut change = Change::default();
        if folder.content(&name) != Some(&bytes[..]) {
            change.put.insert(name, bytes);
        }
        self.commit(&id, folder, change)
    }

    fn from_disk(&mut self, id: &str) -> Result<Loaded, DriverError> {
        let id = SandboxId::new(id)?;
        let dir = self.dir(&id)?;
        let (loaded, files) = load(&id, &dir, &self.root.sandbox(&id), self.tolerance)?;
        if let Some(files) = files {
            self.read.insert(id, files);
        }
        Ok(loaded)
    }

    fn destroy(&mut self, by: By<'_>, id: &str) -> Result<(), DriverError> {
        let id = SandboxId::new(id)?;
        let _lock = match self.locked(by.to_what_is_there(), &id) {
            Err(DriverError::Lock(LockError::NoSandbox(_))) => return Ok(()),
            lock => lock?,
        };
        self.open.remove(&id);
        self.read.remove(&id);
        let path = self.root.sandbox(&id);
        let failed = || store::io("delete", &path);
        let sandboxes = self.root.make(&self.disk, &[SANDBOXES]).map_err(failed())?;
        let trash = self.root.make(&self.disk, &[TRASH]).map_err(failed())?;
        let ours = (&sandboxes, id.as_str());
        match self.disk.carry(ours, (&trash, &trash_name())) {
            Ok(()) => self.disk.sync_dir(&sandboxes).map_err(failed())?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed()(errno).into()),
        }
        self.empty_trash();
        Ok(())
    }

    fn lock(&mut self, id: &str, ask: Ask<'_>) -> Result<Lock, DriverError> {
        let id = SandboxId::new(id)?;
        if ask.create {
            self.root.make_sandbox(&self.disk, &id)?;
        }
        Ok(flock::lock(&id, &self.root.sandbox(&id), ask)?)
    }

    fn global_write(&mut self, path: &str, data: &[u8]) -> Result<(), DriverError> {
        Ok(self.root.global_write(&self.disk, path, data)?)
    }

    fn global_read(&mut self, path: &str) -> Result<Vec<u8>, DriverError> {
        Ok(self.root.global_read(path)?)
    }

    fn run_storage_path(&self) -> PathBuf {
        self.root.run_storage_path()
    }

    fn run_vm_storage_path(&self) -> PathBuf {
        self.root.run_vm_storage_path()
    }

    fn list(&mut self) -> Result<Vec<String>, DriverError> {
        let path = self.root.run_storage_path();
        let list = || -> Result<Vec<String>, Errno> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(Vec::new()),
                Err(errno) => return Err(errno),
            };
            let mut names = store::entries(&dir)?;
            names.retain(|name| store::is_dir(&dir, name).unwrap_or(true));
            Ok(names)
        };
        Ok(list().map_err(store::io("list", &path))?)
    }

    fn verify(&mut self, id: &str) -> Result<Verified, DriverError> {
        let id = SandboxId::new(id)?;
        let (dir, path) = (self.dir(&id)?, self.root.sandbox(&id));
        let seen = verify(&id, &dir, &path, self.tolerance)?;
        if seen.findings.is_empty() {
            return Ok(seen);
        }
        // Somebody may have been in the middle of a save: nobody is while this is held.
        match flock::lock(&id, &path, Ask::shared(WRITERS)) {
            Ok(_lock) => Ok(verify(&id, &self.dir(&id)?, &path, self.tolerance)?),
            Err(LockError::NoSandbox(_)) => Err(DriverError::Absent(id)),
            // As it was seen.
            Err(_) => Ok(seen),
        }
    }
}

/// A name that nothing in the trash has.
pub(super) fn trash_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{now}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
