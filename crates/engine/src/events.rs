//! What has happened to sandboxes: one line for every change of stage, of all sandboxes of a root
//! directory, in one file.
//!
//! Monitors append to it, each line by one write, so lines of several do not mix. When it has grown to
//! its limit it is put aside, in the place of the one before: what is older is forgotten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::life::Stage;
use crate::record::{SandboxRecord, now};
use crate::root::Root;

/// The largest the file gets, in bytes.
const LIMIT: u64 = 4 << 20;

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339.
    pub time: String,
    /// To whom.
    pub sandbox: String,
    /// What it is since then; `adopted` when another monitor took over; `removed`.
    pub event: String,
    /// How its command ended, where that is what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// What else is to be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Event {
    /// What a change of the record tells; none if nothing happened.
    pub(crate) fn between(before: Option<&SandboxRecord>, after: &SandboxRecord) -> Option<Self> {
        let stage_changed = before.is_none_or(|before| before.stage != after.stage);
        let adopted = before.is_some_and(|before| {
            before.monitor != after.monitor && before.stage == after.stage && after.stage.is_up()
        });
        let event = match (stage_changed, adopted) {
            (true, _) => after.stage.name(),
            (false, true) => "adopted",
            (false, false) => return None,
        };
        let is_end = after.stage == Stage::Exited;
        Some(Self {
            time: now(),
            sandbox: after.name.clone(),
            event: event.to_owned(),
            exit_code: after.exit_code.filter(|_| is_end),
            reason: after.reason.clone().filter(|_| is_end),
        })
    }

    /// A sandbox is gone.
    pub(crate) fn removed(sandbox: &str) -> Self {
        Self {
            time: now(),
            sandbox: sandbox.to_owned(),
            event: "removed".to_owned(),
            exit_code: None,
            reason: None,
        }
    }

    /// Appends it. That nobody can read of it is no reason for it not to happen.
    pub(crate) fn append(&self, root: &Root) {
        let append = || -> io::Result<()> {
            let path = path(root);
            if fs::metadata(&path).is_ok_and(|stat| stat.len() >= LIMIT) {
                fs::rename(&path, path.with_extension("1.jsonl"))?;
            }
            let mut line = serde_json::to_vec(self)?;
            line.push(b'\n');
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
            file?.write_all(&line)
        };
        if let Err(error) = append() {
            tracing::warn!(%error, "cannot tell what has happened");
        }
    }
}

fn path(root: &Root) -> PathBuf {
    root.data().join("events.jsonl")
}

/// One who reads what has happened, and goes on as more does.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: Option<(File, u64)>,
}

impl Events {
    /// From the beginning of what is kept.
    pub fn all(root: &Root) -> Self {
        let older = path(root).with_extension("1.jsonl");
        let file = File::open(older).ok().map(|file| (file, 0));
        Self { path: path(root), file }
    }

    /// What was not read yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            if let Some((file, at)) = &mut self.file {
                read_lines(file, at, &mut events)?;
            }
            let current = match File::open(&self.path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(events),
                Err(error) => return Err(error),
            };
            let is_it = match &self.file {
                Some((open, _)) => open.metadata()?.ino() == current.metadata()?.ino(),
                None => false,
            };
            if is_it {
                return Ok(events);
            }
            self.file = Some((current, 0));
        }
    }
}

fn read_lines(file: &mut File, at: &mut u64, events: &mut Vec<Event>) -> io::Result<()> {
    file.seek(SeekFrom::Start(*at))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        *at += line.len() as u64;
        events.extend(serde_json::from_slice::<Event>(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_read_once_and_a_file_put_aside_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let mut reader = Events::all(&root);
        assert_eq!(reader.read().unwrap(), []);
        Event::removed("a").append(&root);
        assert_eq!(reader.read().unwrap().len(), 1);
        assert_eq!(reader.read().unwrap(), []);
        Event::removed("b").append(&root);
        fs::rename(path(&root), path(&root).with_extension("1.jsonl")).unwrap();
        Event::removed("c").append(&root);
        let names: Vec<String> = reader.read().unwrap().into_iter().map(|e| e.sandbox).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(Events::all(&root).read().unwrap().len(), 3);
    }
}
