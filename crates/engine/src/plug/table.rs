//! What is plugged into a sandbox, and what is on its way in or out. Pure.

use serde::{Deserialize, Serialize};

use super::attach::HandleId;
use super::spec::{Kind, PlugSpec, Plugged};

/// One entry; `H` is what takes the thing out again.
#[derive(Debug)]
struct Entry<H> {
    number: u64,
    plugged: Plugged,
    /// None while somebody is at work on it.
    handle: Option<H>,
    /// Taking it out came to nothing half-way: no container sees it any more.
    is_leaving: bool,
}

/// What is said of one that is half out.
pub(crate) const LEAVING: &str = "half out: remove it again";

/// The table.
#[derive(Debug)]
pub(crate) struct Table<H> {
    entries: Vec<Entry<H>>,
    counter: u64,
}

/// Why the table refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Something is at that destination.
    Taken(String),
    /// Nothing answers to the name.
    Unknown,
    /// Several do: they are named.
    Ambiguous(Vec<String>),
    /// Somebody is at work on it.
    Busy,
}

/// A line of the table as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlug {
    pub(crate) number: u64,
    pub(crate) plugged: Plugged,
    /// What takes it out again; none while somebody is at work on it.
    pub(crate) handle: Option<HandleId>,
}

impl SavedPlug {
    /// Whether it is there, and not on its way in or out.
    pub(crate) fn is_there(&self) -> bool {
        self.handle.is_some()
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl<H> Default for Table<H> {
    fn default() -> Self {
        Self { entries: Vec::new(), counter: 0 }
    }
}

impl<H> Table<H> {
    /// A table as it was written down, but for lines somebody was at work on. `handle` finds what takes
    /// a thing out again; a thing that has none any more is forgotten.
    pub(crate) fn restore(
        saved: &[SavedPlug],
        mut handle: impl FnMut(&HandleId) -> Option<H>,
    ) -> Self {
        let counter = saved.iter().map(|plug| plug.number).max().unwrap_or(0);
        let entry = |plug: &SavedPlug| {
            let found = handle(plug.handle.as_ref()?)?;
            let plugged = plug.plugged.clone();
            Some(Entry { number: plug.number, plugged, handle: Some(found), is_leaving: false })
        };
        Self { entries: saved.iter().filter_map(entry).collect(), counter }
    }

    /// As it is written down.
    pub(crate) fn save(&self, id: impl Fn(&H) -> HandleId) -> Vec<SavedPlug> {
        let save = |entry: &Entry<H>| SavedPlug {
            number: entry.number,
            plugged: entry.plugged.clone(),
            // Whoever takes over finishes what is half out.
            handle: entry.handle.as_ref().filter(|_| !entry.is_leaving).map(&id),
        };
        self.entries.iter().map(save).collect()
    }

    /// Reserves an entry; its number is never used again in this sandbox.
    pub(crate) fn reserve(&mut self, spec: &PlugSpec) -> Result<u64, Refusal> {
        if let Some(destination) = &spec.destination {
            let same = |e: &&Entry<H>| e.plugged.spec.destination.as_ref() == Some(destination);
            if let Some(there) = self.entries.iter().find(same) {
                return Err(Refusal::Taken(there.plugged.spec.source.clone()));
            }
        }
        self.counter += 1;
        let plugged = Plugged {
            spec: spec.clone(),
            guest_path: String::new(),
            slot: None,
            state: "arriving".to_owned(),
        };
        self.entries.push(Entry { number: self.counter, plugged, handle: None, is_leaving: false });
        Ok(self.counter)
    }

    /// The thing is there.
    pub(crate) fn fill(&mut self, number: u64, plugged: Plugged, handle: H) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.plugged = plugged;
            entry.handle = Some(handle);
        }
    }

    /// It is gone, or never came.
    pub(crate) fn forget(&mut self, number: u64) {
        self.entries.retain(|entry| entry.number != number);
    }

    /// Takes the handle of the thing that answers to `key`: its destination, or its source if no
    /// other of its kind has the same.
    pub(crate) fn take(&mut self, kind: Kind, key: &str) -> Result<(u64, Plugged, H), Refusal> {
        let is_kind = |entry: &Entry<H>| entry.plugged.spec.kind == kind;
        let at = |entry: &Entry<H>| {
            is_kind(entry) && entry.plugged.spec.destination.as_deref() == Some(key)
        };
        let of = |entry: &Entry<H>| is_kind(entry) && entry.plugged.spec.source == key;
        let found = match self.entries.iter().position(at) {
            Some(found) => found,
            None => {
                let all: Vec<usize> =
                    (0..self.entries.len()).filter(|n| of(&self.entries[*n])).collect();
                match all.as_slice() {
                    [] => return Err(Refusal::Unknown),
                    [one] => *one,
                    several => {
                        let names = several.iter().map(|n| {
                            let spec = &self.entries[*n].plugged.spec;
                            spec.destination.clone().unwrap_or_else(|| spec.source.clone())
                        });
                        return Err(Refusal::Ambiguous(names.collect()));
                    }
                }
            }
        };
        let entry = &mut self.entries[found];
        let handle = entry.handle.take().ok_or(Refusal::Busy)?;
        Ok((entry.number, entry.plugged.clone(), handle))
    }

    /// Puts a handle back: taking the thing out has failed and can be tried again.
    pub(crate) fn put_back(&mut self, number: u64, handle: H, is_leaving: bool) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.handle = Some(handle);
            entry.is_leaving = is_leaving;
        }
    }

    /// Everything, in the order it came.
    pub(crate) fn list(&self, state: impl Fn(&H) -> &'static str) -> Vec<Plugged> {
        let with_state = |entry: &Entry<H>| {
            let mut plugged = entry.plugged.clone();
            if let Some(handle) = &entry.handle {
                let state = if entry.is_leaving { LEAVING } else { state(handle) };
                plugged.state = state.to_owned();
            }
            plugged
        };
        self.entries.iter().map(with_state).collect()
    }

    #[cfg(test)]
    fn states(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.plugged.state.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(source: &str, destination: Option<&str>) -> PlugSpec {
        let destination = destination.map(str::to_owned);
        PlugSpec { destination, ..PlugSpec::new(Kind::Disk, source) }
    }

    fn there(spec: &PlugSpec) -> Plugged {
        Plugged { spec: spec.clone(), guest_path: String::new(), slot: None, state: "ok".into() }
    }

    #[test]
    fn a_destination_is_given_once_even_while_the_first_is_on_its_way() {
        let mut table = Table::<()>::default();
        let first = disk("/a", Some("/m"));
        let number = table.reserve(&first).unwrap();
        assert_eq!(table.states(), ["arriving"]);
        assert_eq!(table.reserve(&disk("/b", Some("/m"))), Err(Refusal::Taken("/a".into())));
        table.forget(number);
        assert!(table.reserve(&disk("/b", Some("/m"))).is_ok());
    }

    #[test]
    fn a_thing_answers_to_its_destination_and_to_its_source_if_that_is_enough() {
        let mut table = Table::default();
        for (n, spec) in
            [disk("/a", Some("/m")), disk("/a", Some("/n")), disk("/b", None)].iter().enumerate()
        {
            let number = table.reserve(spec).unwrap();
            table.fill(number, there(spec), n);
        }
        let ambiguous = Refusal::Ambiguous(vec!["/m".into(), "/n".into()]);
        assert_eq!(table.take(Kind::Disk, "/a").unwrap_err(), ambiguous);
        assert_eq!(table.take(Kind::Pmem, "/b").unwrap_err(), Refusal::Unknown);
        let (number, _, handle) = table.take(Kind::Disk, "/n").unwrap();
        assert_eq!(handle, 1);
        assert_eq!(table.take(Kind::Disk, "/n").unwrap_err(), Refusal::Busy);
        table.put_back(number, handle, true);
        let list = table.list(|_| "ok");
        let states: Vec<&str> = list.iter().map(|there| there.state.as_str()).collect();
        assert_eq!(states, ["ok", LEAVING, "ok"]);
        let saved = table.save(|n| HandleId::Disk(*n as u64));
        assert!(!saved[1].is_there() && saved[0].is_there(), "the next monitor finishes it");
        assert!(table.take(Kind::Disk, "/n").is_ok());
        table.forget(number);
        assert_eq!(table.take(Kind::Disk, "/a").unwrap().2, 0);
        assert_eq!(table.take(Kind::Disk, "/b").unwrap().2, 2);
    }
}
