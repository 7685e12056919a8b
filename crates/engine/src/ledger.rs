//! What is written down of a sandbox, and when.
//!
//! ```text
//!   verb:  intend ─► [written down] ─► effects ─► outcome ─► [written down]
//! ```
//!
//! One ledger per sandbox, and one process that writes it: the monitor. Every write is a commit of the
//! state's log, whole and lasting, in the order in which things changed: what is to be written is put
//! together under the ledger's own lock. The VM hands in its part ([`Recorder`]), the engine changes
//! the rest; whoever writes one part writes all of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coracle_persist::driver::{By, DriverError, FsDriver, OwnRecord, PersistDriver, Save, Whole};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root as StateRoot;
use coracle_uvm::{Recorder, RecordingError, VmRecord};

use crate::error::Error;
use crate::events::Event;
use crate::points;
use crate::projection;
use crate::record::{SCHEMA, SandboxRecord};
use crate::root::Root;

/// The member of `coracle.json` that is ours.
const MEMBER: &str = "sandbox";

/// How long somebody else may hold a sandbox's state.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is written down of one sandbox. Cloning gives another handle.
#[derive(Debug, Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: Root,
    name: String,
    /// Held by whoever writes, from the change to the disk: what is written later is of later.
    driver: Mutex<FsDriver>,
    /// Held for moments only, so that nobody who looks waits for the disk.
    record: Mutex<SandboxRecord>,
}

fn driver(root: &Root) -> FsDriver {
    FsDriver::new(StateRoot::at(root.data()))
}

fn briefly() -> By<'static> {
    By::Asking(Ask::exclusive(PATIENCE))
}

/// The names of all sandboxes something is written down of, sorted. Blocks.
///
/// # Errors
/// The directory cannot be read.
pub fn names(root: &Root) -> Result<Vec<String>, Error> {
    driver(root).list().map_err(|source| Error::States { source: Box::new(source) })
}

/// What is written down of a sandbox; none if nothing is. Blocks.
///
/// # Errors
/// It cannot be read, or a later coracle wrote it.
pub fn read(root: &Root, name: &str) -> Result<Option<SandboxRecord>, Error> {
    let failed = |source| failed("read", name, source);
    match driver(root).from_disk(name) {
        Ok(loaded) => decode(name, loaded.whole),
        Err(DriverError::Absent(_)) => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

/// Forgets a sandbox. Blocks.
///
/// # Errors
/// The state cannot be removed.
pub(crate) fn forget(root: &Root, name: &str) -> Result<(), Error> {
    let gone = driver(root).destroy(briefly(), name);
    gone.map_err(|source| failed("remove", name, source))
}

fn decode(name: &str, whole: Whole) -> Result<Option<SandboxRecord>, Error> {
    // States of other runtimes have no part of ours.
    let Some(member) = whole.record.and_then(|mut record| record.members.remove(MEMBER)) else {
        return Ok(None);
    };
    let schema = member.get("schema").and_then(serde_json::Value::as_u64).unwrap_or_default();
    if schema > u64::from(SCHEMA) {
        return Err(Error::NewerRecord { name: name.to_owned(), schema });
    }
    let read = serde_json::from_value(member);
    read.map(Some).map_err(|source| Error::BadRecord { name: name.to_owned(), source })
}

fn failed(what: &'static str, name: &str, source: DriverError) -> Error {
    Error::State { what, name: name.to_owned(), source: Box::new(source) }
}

impl Ledger {
    /// Begins one for a sandbox that is about to be made. Blocks.
    ///
    /// # Errors
    /// The name is taken; the state cannot be written.
    pub(crate) fn begin(root: &Root, record: SandboxRecord) -> Result<Self, Error> {
        if read(root, &record.name)?.is_some() {
            return Err(Error::Exists { name: record.name });
        }
        let first = Event::between(None, &record);
        let ledger = Self::of(root, record);
        ledger.write(By::Asking(Ask::exclusive(PATIENCE).or_create()), |_| {})?;
        first.inspect(|event| event.append(root));
        Ok(ledger)
    }

    /// Goes on with that of another monitor. Blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(root: &Root, name: &str) -> Result<Option<Self>, Error> {
        Ok(read(root, name)?.map(|record| Self::of(root, record)))
    }

    fn of(root: &Root, record: SandboxRecord) -> Self {
        let name = record.name.clone();
        Self {
            inner: Arc::new(Inner {
                root: root.clone(),
                name,
                driver: Mutex::new(driver(root)),
                record: Mutex::new(record),
            }),
        }
    }

    /// What is written down, or would be if writing had not failed.
    pub(crate) fn record(&self) -> SandboxRecord {
        self.held().clone()
    }

    /// Looks at it.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&SandboxRecord) -> T) -> T {
        at(&self.held())
    }

    /// Changes it and writes it down. Not cancel safe in that it is then written all the same.
    ///
    /// # Errors
    /// It cannot be written; the change is made all the same, and written with the next.
    pub(crate) async fn update(
        &self,
        change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
    ) -> Result<(), Error> {
        let ledger = self.clone();
        let written = tokio::task::spawn_blocking(move || ledger.write(briefly(), change));
        // Writing does not panic; if it did, nothing was written.
        written.await.unwrap_or(Err(Error::Interrupted))
    }

    /// Changes it without writing: what was to be written was refused. The next write has it.
    pub(crate) fn amend(&self, change: impl FnOnce(&mut SandboxRecord)) {
        change(&mut self.held());
    }

    fn write(&self, by: By<'_>, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), Error> {
        let inner = &self.inner;
        let mut driver = inner.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, record) = {
            let mut held = self.held();
            let before = held.clone();
            change(&mut held);
            (before, held.clone())
        };
        points::pass()?;
        let (sandbox, containers) = projection::project(&record);
        let mut own = OwnRecord::default();
        let member = serde_json::to_value(&record)
            .map_err(|source| Error::BadRecord { name: inner.name.clone(), source })?;
        own.members.insert(MEMBER.to_owned(), member);
        let save =
            Save { sandbox: &sandbox, containers: &containers, record: Some(&own), only_if: None };
        driver.save(by, save).map_err(|source| failed("write", &inner.name, source))?;
        // What is written is written: dying is all that can still happen.
        let _ = points::pass();
        if let Some(event) = Event::between(Some(&before), &record) {
            event.append(&inner.root);
        }
        Ok(())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, SandboxRecord> {
        // A change is one closure; one that panicked has changed what it had.
        self.inner.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Recorder for Ledger {
    async fn record(&self, vm: VmRecord) -> Result<(), RecordingError> {
        self.update(move |record| record.vm = Some(vm)).await.map_err(Into::into)
    }
}
