//! A sandbox's directory and its log, for one who holds the lock.

use super::disk::Disk;
use super::error::StoreError;
use super::frame::{self, Kind, Op};
use super::log::Log;
use super::peek::{io, judge};
use super::project::{self, Note};
use super::replay::{Generation, Past, Print, Replay};
use super::sight::{Prints, Sight, Unprojected, see};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of the log in a sandbox's directory.
pub const LOG_FILE: &str = super::log::NAME;

/// What a commit changes.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Documents and their new contents.
    pub put: BTreeMap<String, Vec<u8>>,
    /// Documents that go.
    pub delete: BTreeSet<String>,
}

/// A commit that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub generation: Generation,
    /// What is to be said of the files for others.
    pub notes: Vec<Note>,
}

/// A document as it is committed.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) content: Vec<u8>,
    /// What its file may look like; the newest is what it should.
    pub(super) prints: Vec<Print>,
}

impl Held {
    fn time(&self) -> i64 {
        self.prints.last().map_or(0, |print| print.time)
    }
}

/// A sandbox's directory, open for commits. Whoever has one holds the sandbox's lock while calling
/// it; between locks, [`is_current`](Folder::is_current) tells whether another has written. After an
/// error of a commit it is to be loaded anew.
#[derive(Debug)]
pub struct Folder {
    pub(super) dir: OwnedFd,
    path: PathBuf,
    pub(super) disk: Arc<Disk>,
    log: Option<Log>,
    pub(super) documents: BTreeMap<String, Held>,
    pub(super) deleted: Prints,
    /// What files without a log looked like when they were read.
    pub(super) expected: Prints,
    /// Documents whose files the last commits did not come to.
    pub(super) behind: BTreeSet<String>,
    /// Documents whose files may not survive a power cut.
    pub(super) unsynced: BTreeSet<String>,
    pub(super) settled: bool,
    pub(super) flushes: bool,
}

impl Folder {
    /// Opens a directory. Nothing in it is read yet: [`load`](Folder::load) does.
    ///
    /// # Errors
    /// When it is no directory or may not be opened.
    pub fn open(path: &Path, disk: Arc<Disk>) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(io("open", path))?;
        Ok(Self {
            flushes: project::flushes(&dir),
            dir,
            path: path.to_owned(),
            disk,
            log: None,
            documents: BTreeMap::new(),
            deleted: Prints::new(),
            expected: Prints::new(),
            behind: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            settled: false,
        })
    }

    /// Whether `path` is still this directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_at(&self, path: &Path) -> Result<bool, StoreError> {
        let ours = rustix::fs::fstat(&self.dir).map_err(io("look at", &self.path))?;
        match rustix::fs::stat(path) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(io("look at", path)(errno)),
        }
    }

    /// The documents there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.documents.keys().map(String::as_str)
    }

    /// A document as it is committed.
    pub fn content(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(|held| &held.content[..])
    }

    /// The newest generation known; 0 without a log.
    pub fn generation(&self) -> Generation {
        self.log.as_ref().map_or(Generation(0), |log| log.generation)
    }

    /// Reads the log and lets its documents be judged; nothing when there is no log.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or of a later version.
    pub fn load<R>(
        &mut self,
        read: impl FnOnce(&Replay<'_>) -> R,
    ) -> Result<Option<R>, StoreError> {
        self.log = None;
        self.settled = false;
        self.behind.clear();
        let Some((file, bytes)) = Log::open(&self.dir).map_err(self.on_log("read"))? else {
            return Ok(None);
        };
        let state = judge(&bytes, &self.path)?;
        self.log = Some(Log::known(file, &state).map_err(self.on_log("read"))?);
        self.take_over(&state);
        Ok(Some(read(&state)))
    }

    /// Remembers what a log says.
    fn take_over(&mut self, state: &Replay<'_>) {
        let prints = |history: &[Past<'_>]| history.iter().map(Past::print).collect();
        let documents = state.documents.iter().map(|(name, kept)| {
            let held = Held { content: kept.content.to_vec(), prints: prints(&kept.history()) };
            ((*name).to_owned(), held)
        });
        self.documents = documents.collect();
        let deleted = state.deleted.iter();
        self.deleted = deleted.map(|(name, past)| ((*name).to_owned(), prints(past))).collect();
        self.unsynced = self.documents.keys().cloned().collect();
    }

    /// Whether nobody else has committed since this was loaded or committed.
    ///
    /// # Errors
    /// When the directory cannot be looked at.
    pub fn is_current(&self) -> Result<bool, StoreError> {
        match &self.log {
            Some(log) => log.is_current(&self.dir).map_err(self.on_log("look at")),
            None => {
                let log = Log::read(&self.dir).map_err(self.on_log("look at"))?;
                Ok(log.is_none())
            }
        }
    }

    /// Says what the files of a directory without a log hold, so that they are not taken for
    /// someone else's when they are replaced.
    pub fn expect(&mut self, files: impl IntoIterator<Item = (String, Print)>) {
        self.expected = files.into_iter().map(|(name, print)| (name, vec![print])).collect();
    }

    /// What the files for others are not.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn see(&self, sight: Sight) -> Result<Vec<Unprojected>, StoreError> {
        let documents = self.documents.iter().map(|(name, held)| (name.as_str(), &held.prints[..]));
        let gone = self.deleted.iter().chain(&self.expected);
        let gone = gone.map(|(name, prints)| (name.as_str(), &prints[..]));
        see(&self.dir, documents, gone, sight).map_err(io("read", &self.path))
    }

    /// Makes a change, whole and lasting, and brings the files for others up to date. An error means
    /// that the state is the old one, or, when the disk failed in the last step, whole and new.
    ///
    /// # Errors
    /// When the change cannot be written. What happens to the files for others is no error: it
    /// stands in the notes.
    pub fn commit(&mut self, change: Change) -> Result<Committed, StoreError> {
        let generation = Generation(self.generation().0 + 1);
        let time = now().max(self.log.as_ref().map_or(0, |log| log.time + 1));
        if !self.settled {
            self.forget_past();
        }
        self.record(&change, generation, time)?;
        let put: Vec<String> = change.put.keys().cloned().collect();
        for (name, content) in change.put {
            let print = Print::of(&content, time);
            match self.documents.get_mut(&name) {
                Some(held) => {
                    held.content = content;
                    held.prints.push(print);
                }
                None => {
                    let past = self.deleted.remove(&name).or_else(|| self.expected.remove(&name));
                    let mut prints = past.unwrap_or_default();
                    prints.push(print);
                    self.documents.insert(name, Held { content, prints });
                }
            }
        }
        for name in &change.delete {
            if let Some(held) = self.documents.remove(name) {
                self.deleted.insert(name.clone(), held.prints);
            }
        }
        let mut notes = Vec::new();
        self.settle(&put, &change.delete, &mut notes);
        self.project(&put, &change.delete, &mut notes);
        Ok(Committed { generation, notes })
    }

    /// Writes a change to the log, or to a new one.
    fn record(
        &mut self,
        change: &Change,
        generation: Generation,
        time: i64,
    ) -> Result<(), StoreError> {
        let puts = change.put.iter().map(|(name, content)| (name.as_str(), Op::Put(content, time)));
        let deletes = change.delete.iter().map(|name| (name.as_str(), Op::Delete));
        let delta = frame::encode(Kind::Delta, generation, time, puts.chain(deletes))
            .ok_or_else(|| self.too_large(change.put.values().map(Vec::len).sum()))?;
        let failed = io("write", &self.path.join(LOG_FILE));
        match &mut self.log {
            Some(log) if !log.is_full_for(delta.len()) => {
                log.append(&self.disk, &delta, generation, time).map_err(failed)
            }
            Some(log) if log.has_room_for(delta.len()) => {
                let compacted = self.compact(change, generation, time);
                match (compacted, &mut self.log) {
                    // No room for a new log: this is what the reserve is for.
                    (Err(StoreError::Io { .. }), Some(log)) if log.generation < generation => {
                        log.append(&self.disk, &delta, generation, time).map_err(failed)
                    }
                    (done, _) => done,
                }
            }
            Some(_) | None => self.compact(change, generation, time),
        }
    }

    /// Writes a new log: what the old one says, and the change.
    fn compact(
        &mut self,
        change: &Change,
        generation: Generation,
        time: i64,
    ) -> Result<(), StoreError> {
        let failed = || io("write", &self.path.join(LOG_FILE));
        if self.log.is_some() {
            project::sync(&self.disk, self.dir.as_fd(), self.unsynced.iter()).map_err(failed())?;
        }
        let old = self.documents.iter().map(|(name, held)| {
            let prints = held.prints.last().copied();
            (name.as_str(), (&held.content[..], held.time(), prints))
        });
        let new =
            change.put.iter().map(|(name, content)| (name.as_str(), (&content[..], time, None)));
        let mut documents: BTreeMap<&str, (&[u8], i64, Option<Print>)> = old.chain(new).collect();
        documents.retain(|name, _| !change.delete.contains(*name));
        let files = self.past_files(|name| documents.get(name).and_then(|(.., print)| *print));
        let was = files.iter().map(|(name, print)| (*name, Op::Was(*print)));
        let puts =
            documents.iter().map(|(name, (content, time, _))| (*name, Op::Put(content, *time)));
        let snapshot = frame::encode(Kind::Snapshot, generation, time, was.chain(puts))
            .ok_or_else(|| self.too_large(documents.values().map(|(c, ..)| c.len()).sum()))?;
        let log =
            Log::create(&self.disk, &self.dir, &snapshot, generation, time).map_err(failed())?;
        self.log = Some(log);
        self.unsynced.clear();
        self.disk.sync_dir(&self.dir).map_err(failed())
    }

    fn on_log(&self, verb: &'static str) -> impl FnOnce(Errno) -> StoreError + use<> {
        io(verb, &self.path.join(LOG_FILE))
    }

    fn too_large(&self, len: usize) -> StoreError {
        StoreError::TooLarge { path: self.path.clone(), len }
    }
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
