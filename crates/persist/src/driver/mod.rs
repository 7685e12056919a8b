//! `PersistDriver`, and those who are one.
//!
//! ```text
//!              lock ─────────────► Lock ─────┐ shown, or asked for around the call
//!                                            ▼
//!   SandboxState + containers ──► save ──► driver ──► generation N+1
//!                                            │
//!   Loaded { state, generation, notes } ◄── from_disk      needs no lock
//! ```
//!
//! * [`FsDriver`]: directories and logs, as in [`store`](crate::store); `fs` and `rootlessfs`.
//! * `EtcdDriver` (feature `etcd`): a server, so that a fleet sees the sandboxes of a host that has
//!   died.
//! * [`MemDriver`]: the memory of this process; for tests.
//! * [`Registry`]: which driver is meant by a name, or by nothing.
//!
//! A driver keeps no state that a read could bring back: each read starts from nothing, and what a
//! driver remembers of its last save is only used to find out what has changed.

mod documents;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod features;
mod files;
mod fs;
mod kata;
mod load;
mod mem;
mod record;
mod registry;
mod rootless;
mod salvage;
mod verify;

pub use error::DriverError;
#[cfg(feature = "etcd")]
pub use etcd::{EtcdDriver, EtcdPlace};
pub use features::{Feature, FeatureError, Features, NEW_STORE};
pub use fs::FsDriver;
pub use kata::{Imported, export_to_kata, import_from_kata};
pub use load::read_sandbox_dir;
pub use mem::{MemDriver, Memory};
pub use record::{OwnRecord, RECORD_SCHEMA, RecordError};
pub use registry::{Choice, Registry};
pub use rootless::{Rootless, UserPlace, rootless_root};
pub use salvage::{Salvaged, salvage_sandbox_dir};
pub use verify::{Finding, Verified};

use crate::id::{ContainerId, SandboxId};
use crate::lock::{Ask, Lock, LockError};
use crate::model::{ContainerState, SandboxState};
use crate::store::{Generation, Note};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The states of a sandbox's containers, by their ids.
pub type Containers = BTreeMap<String, ContainerState>;

/// Everything that is kept of a sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole {
    /// The sandbox; its id is its `sandbox_container`.
    pub sandbox: SandboxState,
    /// Its containers.
    pub containers: Containers,
    /// What Kata's schema has no place for.
    pub record: Option<OwnRecord>,
}

/// The lock under which something is written.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// One that the caller has.
    Lock(&'a Lock),
    /// One that is taken for just this call.
    Asking(Ask<'a>),
}

impl By<'_> {
    /// The same, but a sandbox that is not there is not made.
    fn to_what_is_there(self) -> Self {
        match self {
            By::Asking(ask) => By::Asking(Ask { create: false, ..ask }),
            By::Lock(lock) => By::Lock(lock),
        }
    }
}

/// For one who needs the sandbox, not its lock.
fn absent(error: DriverError) -> DriverError {
    match error {
        DriverError::Lock(LockError::NoSandbox(id)) => DriverError::Absent(id),
        error => error,
    }
}

/// Refuses to save over what the caller does not know.
fn unchanged_since(
    id: &SandboxId,
    expected: Option<Generation>,
    found: Generation,
) -> Result<(), DriverError> {
    match expected {
        Some(expected) if expected != found => {
            Err(DriverError::Conflict { id: id.clone(), expected, found })
        }
        Some(_) | None => Ok(()),
    }
}

impl<'a> From<&'a Lock> for By<'a> {
    fn from(lock: &'a Lock) -> Self {
        By::Lock(lock)
    }
}

impl<'a> From<Ask<'a>> for By<'a> {
    fn from(ask: Ask<'a>) -> Self {
        By::Asking(ask)
    }
}

/// What is to be saved.
#[derive(Clone, Copy, Debug)]
pub struct Save<'a> {
    /// The sandbox.
    pub sandbox: &'a SandboxState,
    /// All of its containers: one that is not among them is forgotten.
    pub containers: &'a Containers,
    /// What Kata's schema has no place for; nothing leaves it as it is.
    pub record: Option<&'a OwnRecord>,
    /// The generation that this state was made from; the save is refused if it is another now.
    pub only_if: Option<Generation>,
}

impl Save<'_> {
    /// Whose state it is; all ids in it are ids.
    fn id(&self) -> Result<SandboxId, DriverError> {
        for container in self.containers.keys() {
            ContainerId::new(container)?;
        }
        Ok(SandboxId::new(&self.sandbox.sandbox_container)?)
    }
}

/// An error and its causes as one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A save that is whole and lasting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its number. When nothing had changed it is that of the save before.
    pub generation: Generation,
    /// How many documents had changed.
    pub changed: usize,
    /// What is to be said of the files for others.
    pub notes: Vec<Note>,
}

/// A sandbox as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Its state.
    pub whole: Whole,
    /// The number of the save it is of; 0 for files that Kata wrote.
    pub generation: Generation,
    /// Files that someone else has edited since, relative to the sandbox's directory. Their content
    /// is not in the state.
    pub edited: Vec<String>,
}

/// Keeps the states of sandboxes.
///
/// The eight operations of Kata's driver, and what a store needs besides.
pub trait PersistDriver: Send {
    /// The name it is registered by.
    fn name(&self) -> &'static str;

    /// Saves everything, whole and lasting. On an error the state is the old one; or, if the last
    /// step of making it last has failed, the new one, whole.
    ///
    /// # Errors
    /// When an id, the lock or the generation is not as it should be, a value has no text, or the
    /// place refuses.
    fn save(&mut self, by: By<'_>, save: Save<'_>) -> Result<Saved, DriverError>;

    /// Saves one container of a sandbox, new or changed, and nothing else; it costs the same however
    /// many others there are.
    ///
    /// # Errors
    /// [`DriverError::Absent`] when the sandbox was never saved; else as
    /// [`save`](PersistDriver::save).
    fn save_container(
        &mut self,
        by: By<'_>,
        id: &str,
        container: &str,
        state: &ContainerState,
        only_if: Option<Generation>,
    ) -> Result<Saved, DriverError>;

    /// Reads a sandbox from where it is kept. No lock is needed: what is read is one save, whole.
    ///
    /// # Errors
    /// [`DriverError::Absent`] when there is none; when it is damaged or of another version, and
    /// when the place refuses.
    #[doc(alias = "FromDisk")]
    #[allow(clippy::wrong_self_convention, reason = "the seed's name")]
    fn from_disk(&mut self, id: &str) -> Result<Loaded, DriverError>;

    /// Forgets a sandbox, at once and whole. One that is not there is fine.
    ///
    /// # Errors
    /// When the id or the lock is not as it should be, or the place refuses.
    #[doc(alias = "Destroy")]
    fn destroy(&mut self, by: By<'_>, id: &str) -> Result<(), DriverError>;

    /// Takes the lock of a sandbox. It is given back when the lock is dropped.
    ///
    /// # Errors
    /// When it is not to be had in the time given.
    #[doc(alias = "Lock")]
    fn lock(&mut self, id: &str, ask: Ask<'_>) -> Result<Lock, DriverError>;

    /// Writes data that belongs to no sandbox, all or nothing.
    ///
    /// # Errors
    /// When the path leads out of the root, or the place refuses.
    #[doc(alias = "GlobalWrite")]
    fn global_write(&mut self, path: &str, data: &[u8]) -> Result<(), DriverError>;

    /// Reads data that belongs to no sandbox.
    ///
    /// # Errors
    /// When there is none, the path leads out of the root, or the place refuses.
    #[doc(alias = "GlobalRead")]
    fn global_read(&mut self, path: &str) -> Result<Vec<u8>, DriverError>;

    /// Where the directories of sandboxes are, for sockets and the like.
    #[doc(alias = "RunStoragePath")]
    fn run_storage_path(&self) -> PathBuf;

    /// Where the directories of VMs are.
    #[doc(alias = "RunVMStoragePath")]
    fn run_vm_storage_path(&self) -> PathBuf;

    /// The ids of all sandboxes, sorted.
    ///
    /// # Errors
    /// When the place refuses.
    fn list(&mut self) -> Result<Vec<String>, DriverError>;

    /// Compares what is kept of a sandbox with what should be, byte for byte.
    ///
    /// # Errors
    /// When there is no such sandbox, or the place refuses. What is wrong with it is no error.
    fn verify(&mut self, id: &str) -> Result<Verified, DriverError>;

    /// Saves a sandbox and its containers.
    ///
    /// # Errors
    /// As [`save`](PersistDriver::save).
    #[doc(alias = "ToDisk")]
    fn to_disk(
        &mut self,
        by: By<'_>,
        sandbox: &SandboxState,
        containers: &Containers,
    ) -> Result<Saved, DriverError> {
        self.save(by, Save { sandbox, containers, record: None, only_if: None })
    }

    /// Saves a sandbox and its containers if nobody else has since `generation`.
    ///
    /// # Errors
    /// [`DriverError::Conflict`] if somebody has; else as [`save`](PersistDriver::save).
    fn save_if(
        &mut self,
        by: By<'_>,
        generation: Generation,
        sandbox: &SandboxState,
        containers: &Containers,
    ) -> Result<Saved, DriverError> {
        self.save(by, Save { sandbox, containers, record: None, only_if: Some(generation) })
    }
}
