//! States in the memory of this process, as Kata's mock driver keeps them; for tests.

use super::error::DriverError;
use super::{By, Loaded, PersistDriver, Save, Saved, Verified, Whole};
use crate::codec::{encode_container, encode_sandbox};
use crate::id::SandboxId;
use crate::lock::table::{LockTable, Same};
use crate::lock::{Ask, Lock, LockError, Shown};
use crate::model::ContainerState;
use crate::root::{GlobalError, Root, steps};
use crate::store::Generation;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory that several drivers can share, as they would a disk.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    kept: Arc<Mutex<Kept>>,
    locks: LockTable,
}

#[derive(Debug, Default)]
struct Kept {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    globals: BTreeMap<String, Vec<u8>>,
    made: u64,
}

#[derive(Debug)]
struct Sandbox {
    /// Which making of a sandbox of this id it is.
    made: u64,
    generation: Generation,
    whole: Option<Whole>,
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn make(&mut self, id: &SandboxId) {
        let made = self.made + 1;
        self.sandboxes.entry(id.clone()).or_insert_with(|| {
            self.made = made;
            Sandbox { made, generation: Generation(0), whole: None }
        });
    }
}

/// States in memory.
#[derive(Debug)]
pub struct MemDriver {
    memory: Memory,
    root: Root,
}

impl MemDriver {
    /// A driver for the states in `memory`. Its paths are those of a directory for temporary files,
    /// as Kata's mock driver has them; nothing is written there.
    pub fn new(memory: Memory) -> Self {
        Self { memory, root: Root::at(std::env::temp_dir().join("vc/mockfs")) }
    }
}

/// A sandbox as it was when it was locked.
#[derive(Debug)]
struct Made {
    memory: Memory,
    id: SandboxId,
    made: u64,
}

impl Same for Made {
    fn is_same(&self) -> bool {
        self.memory.kept().sandboxes.get(&self.id).is_some_and(|now| now.made == self.made)
    }
}

impl MemDriver {
    fn global(&self, path: &str) -> Result<String, DriverError> {
        Ok(steps(path, self.root.path())?.join("/"))
    }
}

impl PersistDriver for MemDriver {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn save(&mut self, by: By<'_>, save: Save<'_>) -> Result<Saved, DriverError> {
        let id = save.id()?;
        // What has no text is refused here too.
        encode_sandbox(save.sandbox).map_err(|source| DriverError::Encode {
            id: id.clone(),
            container: None,
            source,
        })?;
        for (name, state) in save.containers {
            let container = Some(name.clone());
            encode_container(state).map_err(|source| DriverError::Encode {
                id: id.clone(),
                container,
                source,
            })?;
        }
        let _lock = Shown::of(by, &id, |ask| self.lock(id.as_str(), ask))?;
        let mut kept = self.memory.kept();
        kept.make(&id);
        let Some(sandbox) = kept.sandboxes.get_mut(&id) else {
            return Err(LockError::Gone(id).into());
        };
        super::unchanged_since(&id, save.only_if, sandbox.generation)?;
        let old = sandbox.whole.take();
        let record = save.record.cloned().or(old.as_ref().and_then(|old| old.record.clone()));
        let (state, containers) = (save.sandbox.clone(), save.containers.clone());
        let new = Whole { sandbox: state, containers, record };
        let changed = count_changes(old.as_ref(), &new);
        sandbox.whole = Some(new);
        if changed > 0 {
            sandbox.generation.0 += 1;
        }
        Ok(Saved { generation: sandbox.generation, changed, notes: Vec::new() })
    }

    fn save_container(
        &mut self,
        by: By<'_>,
        id: &str,
        container: &str,
        state: &ContainerState,
        only_if: Option<Generation>,
    ) -> Result<Saved, DriverError> {
        let Whole { sandbox, mut containers, .. } = self.from_disk(id)?.whole;
        containers.insert(container.to_owned(), state.clone());
        let save = Save { sandbox: &sandbox, containers: &containers, record: None, only_if };
        self.save(by, save)
    }

    fn from_disk(&mut self, id: &str) -> Result<Loaded, DriverError> {
        let id = SandboxId::new(id)?;
        let kept = self.memory.kept();
        let sandbox = kept.sandboxes.get(&id);
        match sandbox.and_then(|sandbox| Some((sandbox.whole.clone()?, sandbox.generation))) {
            Some((whole, generation)) => Ok(Loaded { whole, generation, edited: Vec::new() }),
            None => Err(DriverError::Absent(id)),
        }
    }

    fn destroy(&mut self, by: By<'_>, id: &str) -> Result<(), DriverError> {
        let id = SandboxId::new(id)?;
        let by = by.to_what_is_there();
        let _lock = match Shown::of(by, &id, |ask| self.lock(id.as_str(), ask)) {
            Err(DriverError::Lock(LockError::NoSandbox(_))) => return Ok(()),
            lock => lock?,
        };
        self.memory.kept().sandboxes.remove(&id);
        Ok(())
    }

    fn lock(&mut self, id: &str, ask: Ask<'_>) -> Result<Lock, DriverError> {
        let id = SandboxId::new(id)?;
        let mut kept = self.memory.kept();
        if ask.create {
            kept.make(&id);
        }
        let Some(made) = kept.sandboxes.get(&id).map(|sandbox| sandbox.made) else {
            return Err(LockError::NoSandbox(id).into());
        };
        drop(kept);
        let same = Made { memory: self.memory.clone(), id: id.clone(), made };
        let lock = self.memory.locks.lock(&id, ask, same)?;
        Ok(lock)
    }

    fn global_write(&mut self, path: &str, data: &[u8]) -> Result<(), DriverError> {
        let path = self.global(path)?;
        self.memory.kept().globals.insert(path, data.to_owned());
        Ok(())
    }

    fn global_read(&mut self, path: &str) -> Result<Vec<u8>, DriverError> {
        let path = self.global(path)?;
        let data = self.memory.kept().globals.get(&path).cloned();
        data.ok_or_else(|| {
            let (path, source) =
                (self.root.path().join(&path), std::io::ErrorKind::NotFound.into());
            GlobalError::Io { verb: "read", path, source }.into()
        })
    }

    fn run_storage_path(&self) -> PathBuf {
        self.root.run_storage_path()
    }

    fn run_vm_storage_path(&self) -> PathBuf {
        self.root.run_vm_storage_path()
    }

    fn list(&mut self) -> Result<Vec<String>, DriverError> {
        Ok(self.memory.kept().sandboxes.keys().map(ToString::to_string).collect())
    }

    fn verify(&mut self, id: &str) -> Result<Verified, DriverError> {
        let loaded = self.from_disk(id)?;
        let generation = Some(loaded.generation);
        Ok(Verified { id: id.to_owned(), generation, findings: Vec::new() })
    }
}

/// How many documents are not as they were.
fn count_changes(old: Option<&Whole>, new: &Whole) -> usize {
    let Some(old) = old else {
        return 1 + new.containers.len() + usize::from(new.record.is_some());
    };
    let changed =
        new.containers.iter().filter(|(name, state)| old.containers.get(*name) != Some(state));
    let gone = old.containers.keys().filter(|name| !new.containers.contains_key(*name));
    usize::from(old.sandbox != new.sandbox)
        + usize::from(old.record != new.record)
        + changed.count()
        + gone.count()
}
