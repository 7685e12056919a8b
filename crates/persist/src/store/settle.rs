//! After a commit: the files for others follow, and what others and interrupted writers did to them
//! is found out.

use super::folder::Folder;
use super::project::{self, Note};
use super::replay::Print;
use super::sight::{Look, Sight, Unprojected, look};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::collections::BTreeSet;

impl Folder {
    /// What files may still look like that are not up to date: a reader of a new log must not take
    /// them for someone else's.
    pub(super) fn past_files(&self, now: impl Fn(&str) -> Option<Print>) -> Vec<(&str, Print)> {
        let documents = self.documents.iter().map(|(name, held)| (name, &held.prints));
        let known = documents.chain(&self.deleted).chain(&self.expected);
        known
            .flat_map(|(name, prints)| {
                let now = now(name);
                let past = prints.iter().filter(move |print| now != Some(**print));
                past.map(|print| (name.as_str(), *print))
            })
            .collect()
    }

    /// Of the prints that a log remembers, keeps those that a file still has.
    pub(super) fn forget_past(&mut self) {
        for (name, held) in &mut self.documents {
            let last = held.prints.len() - 1;
            let prints = &mut held.prints;
            match look(&self.dir, name, prints, Sight::Glance) {
                Ok(Look::Earlier(at)) => {
                    let was = prints[at];
                    prints.drain(..last);
                    prints.insert(0, was);
                }
                Ok(Look::Current | Look::Absent | Look::Torn) => {
                    prints.drain(..last);
                }
                Ok(Look::Strange) | Err(_) => {}
            }
        }
        let dir = &self.dir;
        self.deleted.retain(|name, prints| {
            !matches!(look(dir, name, prints, Sight::Glance), Ok(Look::Absent))
        });
    }

    /// Once after loading: finds what others did and what an interrupted writer left.
    pub(super) fn settle(
        &mut self,
        put: &[String],
        delete: &BTreeSet<String>,
        notes: &mut Vec<Note>,
    ) {
        if self.settled {
            return;
        }
        let Ok(found) = self.see(Sight::Stare) else { return };
        let mut all = true;
        for thing in found {
            let name = thing.name().to_owned();
            let done = match thing {
                Unprojected::Stale(_)
                | Unprojected::Missing(_)
                | Unprojected::Torn(_)
                | Unprojected::Edited(_) => {
                    self.behind.insert(name.clone());
                    Ok(None)
                }
                Unprojected::Added(_) => {
                    let (_, file) = project::split(&name);
                    project::clear(&self.disk, self.dir.as_fd(), file, &name, &[])
                }
                Unprojected::Leftover(_) if delete.contains(&name) => Ok(None),
                Unprojected::Leftover(_) => {
                    project::sweep(&self.disk, self.dir.as_fd(), &name).map(|()| None)
                }
            };
            all &= done.is_ok();
            notes.extend(done.unwrap_or_else(|errno| Some(behind(&name, errno))));
        }
        if !all {
            return;
        }
        for (name, held) in &mut self.documents {
            if !self.behind.contains(name) && !put.contains(name) {
                held.prints.drain(..held.prints.len() - 1);
            }
        }
        self.deleted.retain(|name, _| delete.contains(name));
        self.expected.clear();
        self.settled = true;
    }

    /// Brings the files of changed documents up to date, and of those left behind before.
    pub(super) fn project(
        &mut self,
        put: &[String],
        delete: &BTreeSet<String>,
        notes: &mut Vec<Note>,
    ) {
        for name in delete {
            let prints = self.deleted.get(name).map_or(&[][..], Vec::as_slice);
            let done = project::delete(&self.disk, self.dir.as_fd(), name, prints);
            if done.is_ok() {
                self.deleted.remove(name);
            }
            self.settled &= done.is_ok();
            notes.extend(done.unwrap_or_else(|errno| Some(behind(name, errno))));
            self.behind.remove(name);
        }
        for name in put {
            self.put(name, notes);
        }
        for name in self.behind.clone() {
            if !put.contains(&name) {
                self.put(&name, notes);
            }
        }
    }

    fn put(&mut self, name: &str, notes: &mut Vec<Note>) {
        let Some(held) = self.documents.get_mut(name) else { return };
        let (content, prints) = (&held.content, &held.prints);
        match project::put(&self.disk, self.dir.as_fd(), name, content, prints, self.flushes) {
            Ok(note) => {
                held.prints.drain(..held.prints.len() - 1);
                self.behind.remove(name);
                self.unsynced.insert(name.to_owned());
                notes.extend(note);
            }
            Err(errno) => {
                self.behind.insert(name.to_owned());
                notes.push(behind(name, errno));
            }
        }
    }
}

fn behind(name: &str, errno: Errno) -> Note {
    Note::Behind { file: name.to_owned(), error: std::io::Error::from(errno).to_string() }
}
