//! States in an etcd server, so that a fleet sees the sandboxes of a host that has died.
//!
//! ```text
//!   PREFIX/sbs/SID/meta           {"generation":7}
//!   PREFIX/sbs/SID/sandbox        as in persist.json
//!   PREFIX/sbs/SID/c/CID          as in CID/persist.json
//!   PREFIX/sbs/SID/record         as in coracle.json
//!   PREFIX/locks/SID/exclusive    with the lease of whoever has the lock
//!   PREFIX/locks/SID/shared/LEASE
//!   PREFIX/global/PATH
//! ```
//!
//! A save is one transaction. It holds only if the generation is the one that was read, and if the
//! lock that was shown is still there: one whose lease has run out saves nothing, however long it was
//! held up. A server takes 128 operations in a transaction unless told otherwise
//! (`--max-txn-ops`), so that a first save of more containers needs one that was.
//!
//! Every call blocks; none may be made from within an async runtime.

mod keys;
mod lock;
mod wire;

use super::documents::{container_document, documents, file_of, whole_of};
use super::error::DriverError;
use super::{By, Finding, Loaded, PersistDriver, Save, Saved, Verified, Whole};
use crate::id::{ContainerId, SandboxId};
use crate::lock::{Ask, Lock, LockError};
use crate::model::ContainerState;
use crate::root::{GlobalError, Root, steps};
use crate::store::{FILE, Generation, OWN_FILE};
use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp};
use keys::Keys;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;
use wire::Wire;

/// Where an etcd server is, and what of it is ours.
#[derive(Clone, Debug)]
pub struct EtcdPlace {
    /// Addresses of the cluster, as in `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// How long a lock outlives a holder that has died; whole seconds, at least one.
    pub lease: Duration,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Where sockets and the like are, which are not states.
    pub root: Root,
}

/// States in an etcd server.
#[derive(Debug)]
pub struct EtcdDriver {
    wire: Wire,
    keys: Keys,
    place: EtcdPlace,
    /// Sandboxes saved before, to find out what has changed.
    known: HashMap<SandboxId, Known>,
}

/// A sandbox as a server has it.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The revision of its meta key; 0 when there is none.
    revision: i64,
    generation: Generation,
    documents: BTreeMap<String, Vec<u8>>,
}

impl EtcdDriver {
    /// Connects to a server.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connect(place: EtcdPlace) -> Result<Self, DriverError> {
        let wire = Wire::connect(&place)?;
        let keys = Keys::new(&place.prefix);
        Ok(Self { wire, keys, place, known: HashMap::new() })
    }

    /// Reads a sandbox in one revision.
    fn read(&self, id: &SandboxId) -> Result<Known, DriverError> {
        let prefix = self.keys.sandbox(id);
        let options = GetOptions::new().with_prefix();
        let answer = self.wire.ask("read", &prefix, async |mut client| {
            client.get(prefix.as_str(), Some(options)).await
        })?;
        let mut known = Known::default();
        for pair in answer.kvs() {
            let name = String::from_utf8_lossy(pair.key());
            let name = name.strip_prefix(&prefix).unwrap_or_default();
            match Keys::document(name) {
                Some(document) => {
                    known.documents.insert(document, pair.value().to_vec());
                }
                None if name == keys::META => {
                    known.revision = pair.mod_revision();
                    known.generation = keys::generation(pair.value());
                }
                None => {}
            }
        }
        Ok(known)
    }

    /// Commits what has changed, if anything has, in one transaction.
    fn commit(
        &mut self,
        id: &SandboxId,
        lock: &Lock,
        mut known: Known,
        put: BTreeMap<String, Vec<u8>>,
        delete: BTreeSet<String>,
    ) -> Result<Saved, DriverError> {
        let changed = put.len() + delete.len();
        let mut saved = Saved { generation: known.generation, changed, notes: Vec::new() };
        if changed == 0 {
            self.known.insert(id.clone(), known);
            return Ok(saved);
        }
        let prefix = self.keys.sandbox(id);
        let meta = format!("{prefix}{}", keys::META);
        let next = Generation(known.generation.0 + 1);
        let mut ops = vec![TxnOp::put(meta.as_str(), keys::meta(next), None)];
        let key = |document: &str| format!("{prefix}{}", Keys::of_document(document));
        ops.extend(put.iter().map(|(name, bytes)| TxnOp::put(key(name), bytes.as_slice(), None)));
        ops.extend(delete.iter().map(|name| TxnOp::delete(key(name), None)));
        let mut when = vec![Compare::mod_revision(meta.as_str(), CompareOp::Equal, known.revision)];
        when.extend(lock::still_held(lock));
        let txn = Txn::new().when(when).and_then(ops);
        let answer = self.wire.ask("save", &prefix, async |mut client| client.txn(txn).await)?;
        if !answer.succeeded() {
            lock.permits(id)?;
            let (expected, found) = (known.generation, self.read(id)?.generation);
            return Err(DriverError::Conflict { id: id.clone(), expected, found });
        }
        known.revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        known.generation = next;
        known.documents.retain(|name, _| !delete.contains(name));
        known.documents.extend(put);
        self.known.insert(id.clone(), known);
        saved.generation = next;
        Ok(saved)
    }

    /// What the server has; what was known is taken for it only if nobody has saved since.
    fn current(&mut self, id: &SandboxId) -> Result<Known, DriverError> {
        let Some(known) = self.known.remove(id) else { return self.read(id) };
        let meta = format!("{}{}", self.keys.sandbox(id), keys::META);
        let answer = self.wire.ask("read", &meta, async |mut client| {
            client.get(meta.as_str(), Some(GetOptions::new().with_keys_only())).await
        })?;
        let revision = answer.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision);
        if revision == known.revision { Ok(known) } else { self.read(id) }
    }

    fn locked<'a>(
        &mut self,
        by: By<'a>,
        id: &SandboxId,
    ) -> Result<crate::lock::Shown<'a>, DriverError> {
        crate::lock::Shown::of(by, id, |ask| self.lock(id.as_str(), ask))
    }

    fn global(&self, path: &str) -> Result<String, DriverError> {
        let globals = self.keys.globals();
        let steps = steps(path, globals.as_ref())?;
        Ok(format!("{globals}{}", steps.join("/")))
    }
}

impl PersistDriver for EtcdDriver {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn save(&mut self, by: By<'_>, save: Save<'_>) -> Result<Saved, DriverError> {
        let id = save.id()?;
        let mut put = documents(&id, &save)?;
        let lock = self.locked(by, &id)?;
        let known = self.current(&id)?;
        super::unchanged_since(&id, save.only_if, known.generation)?;
        let gone = |name: &&String| !put.contains_key(*name) && *name != OWN_FILE;
        let delete = known.documents.keys().filter(gone).cloned().collect();
        put.retain(|name, bytes| known.documents.get(name) != Some(bytes));
        self.commit(&id, &lock, known, put, delete)
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
        let lock = self.locked(by.to_what_is_there(), &id).map_err(super::absent)?;
        let known = self.current(&id)?;
        if !known.documents.contains_key(FILE) {
            return Err(DriverError::Absent(id));
        }
        super::unchanged_since(&id, only_if, known.generation)?;
        let (name, bytes) = (file_of(container), container_document(&id, container, state)?);
        let mut put = BTreeMap::new();
        if known.documents.get(&name) != Some(&bytes) {
            put.insert(name, bytes);
        }
        self.commit(&id, &lock, known, put, BTreeSet::new())
    }

    fn from_disk(&mut self, id: &str) -> Result<Loaded, DriverError> {
        let id = SandboxId::new(id)?;
        let known = self.read(&id)?;
        let documents = known.documents.iter().map(|(name, bytes)| (name.as_str(), &bytes[..]));
        let whole: Whole = whole_of(&id, documents)?;
        Ok(Loaded { whole, generation: known.generation, edited: Vec::new() })
    }

    fn destroy(&mut self, by: By<'_>, id: &str) -> Result<(), DriverError> {
        let id = SandboxId::new(id)?;
        let lock = match self.locked(by.to_what_is_there(), &id) {
            Err(DriverError::Lock(LockError::NoSandbox(_))) => return Ok(()),
            lock => lock?,
        };
        self.known.remove(&id);
        let prefix = self.keys.sandbox(&id);
        let all = Some(DeleteOptions::new().with_prefix());
        let txn = Txn::new()
            .when(lock::still_held(&lock))
            .and_then(vec![TxnOp::delete(prefix.as_str(), all)]);
        let answer = self.wire.ask("delete", &prefix, async |mut client| client.txn(txn).await)?;
        if !answer.succeeded() {
            return Err(LockError::Gone(id).into());
        }
        Ok(())
    }

    fn lock(&mut self, id: &str, ask: Ask<'_>) -> Result<Lock, DriverError> {
        let id = SandboxId::new(id)?;
        lock::lock(&self.wire, &self.keys, &id, ask, self.place.lease)
    }

    fn global_write(&mut self, path: &str, data: &[u8]) -> Result<(), DriverError> {
        let key = self.global(path)?;
        self.wire
            .ask("write", &key, async |mut client| client.put(key.as_str(), data, None).await)?;
        Ok(())
    }

    fn global_read(&mut self, path: &str) -> Result<Vec<u8>, DriverError> {
        let key = self.global(path)?;
        let answer =
            self.wire.ask("read", &key, async |mut client| client.get(key.as_str(), None).await)?;
        let found = answer.kvs().first().map(|pair| pair.value().to_vec());
        found.ok_or_else(|| {
            let source = std::io::ErrorKind::NotFound.into();
            GlobalError::Io { verb: "read", path: key.clone().into(), source }.into()
        })
    }

    fn run_storage_path(&self) -> PathBuf {
        self.place.root.run_storage_path()
    }

    fn run_vm_storage_path(&self) -> PathBuf {
        self.place.root.run_vm_storage_path()
    }

    fn list(&mut self) -> Result<Vec<String>, DriverError> {
        let prefix = self.keys.sandboxes();
        let options = GetOptions::new().with_prefix().with_keys_only();
        let answer = self.wire.ask("list", &prefix, async |mut client| {
            client.get(prefix.as_str(), Some(options)).await
        })?;
        let ids: BTreeSet<String> = answer
            .kvs()
            .iter()
            .filter_map(|pair| {
                let name = String::from_utf8_lossy(pair.key()).into_owned();
                let (id, key) = name.strip_prefix(&prefix)?.split_once('/')?;
                (key == keys::META).then(|| id.to_owned())
            })
            .collect();
        Ok(ids.into_iter().collect())
    }

    fn verify(&mut self, id: &str) -> Result<Verified, DriverError> {
        let (generation, findings) = match self.from_disk(id) {
            Ok(loaded) => (Some(loaded.generation), Vec::new()),
            Err(DriverError::Decode { file, source, .. }) => {
                let why = super::sentence(&source);
                (None, vec![Finding::Damaged { file, why }])
            }
            Err(error) => return Err(error),
        };
        Ok(Verified { id: id.to_owned(), generation, findings })
    }
}
