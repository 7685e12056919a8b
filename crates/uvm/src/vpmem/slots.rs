//! Which PMEM slots are taken, and by what. Pure.
//!
//! A virtio-pmem device cannot be unplugged. So a slot whose file nobody uses any more is *parked*:
//! unmounted in the guest, still plugged in, still counted, and given to the same file again when that
//! comes back. Another file never gets it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use crate::errors::UvmError;
use crate::plug::{Reserved, Saved, Shelf};

/// Which file it is, whatever its path: device, inode, size, time of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId(u64, u64, u64, i64, i64);

impl FileId {
    pub(crate) fn of(stat: &std::fs::Metadata) -> Self {
        Self(stat.dev(), stat.ino(), stat.len(), stat.mtime(), stat.mtime_nsec())
    }

    /// A file that cannot be examined any more: like no file there is.
    pub(crate) fn unknown() -> Self {
        Self(0, 0, 0, 0, 0)
    }
}

/// A slot and what the guest knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    /// Plugged in already: it was parked.
    pub(crate) is_plugged: bool,
    /// Mounted by the guest's own boot, at its root.
    pub(crate) is_root: bool,
}

impl Slot {
    pub(crate) fn uvm_path(&self) -> String {
        if self.is_root { "/".to_owned() } else { format!("/run/layers/p{}", self.number) }
    }
}

/// The slots of a VM.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) shelf: Shelf<String, Slot>,
    parked: BTreeMap<u32, (String, FileId)>,
}

/// The slots as they are written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedSlots {
    shelf: Vec<Saved<String, Slot>>,
    parked: BTreeMap<u32, (String, FileId)>,
}

impl SavedSlots {
    /// Files on their way in or out.
    pub(crate) fn underway(&self) -> Vec<String> {
        self.shelf.iter().filter(|thing| thing.is_underway).map(|thing| thing.key.clone()).collect()
    }
}

impl Slots {
    pub(crate) fn save(&self) -> SavedSlots {
        SavedSlots { shelf: self.shelf.save(), parked: self.parked.clone() }
    }

    pub(crate) fn restore(saved: &SavedSlots) -> Self {
        Self { shelf: Shelf::restore(&saved.shelf), parked: saved.parked.clone() }
    }

    /// Reserves a slot for a file: the one parked for it, else the first free one of `count`.
    pub(crate) fn reserve(
        &mut self,
        host_path: &str,
        file: FileId,
        count: u32,
    ) -> Result<Reserved<Slot>, UvmError> {
        let parked = self
            .parked
            .iter()
            .find(|(_, (path, id))| path == host_path && *id == file)
            .map(|(number, _)| *number);
        let parked_ones = &self.parked;
        let reserved = self.shelf.reserve(&host_path.to_owned(), |shelf| {
            if let Some(number) = parked {
                return Ok::<_, UvmError>(Slot { number, is_plugged: true, is_root: false });
            }
            let taken = |number: &u32| {
                parked_ones.contains_key(number)
                    || shelf.iter().any(|(_, slot)| slot.number == *number)
            };
            let free = (0..count).find(|number| !taken(number));
            let number = free.ok_or(UvmError::NoAvailableLocation)?;
            Ok(Slot { number, is_plugged: false, is_root: false })
        })?;
        if let Reserved::First(slot) = &reserved {
            self.parked.remove(&slot.number);
        }
        Ok(reserved)
    }

    /// The slot of a file that was there at boot, with the one use that the guest makes of it.
    pub(crate) fn occupy(&mut self, number: u32, host_path: &str) {
        let (path, slot) = (host_path.to_owned(), Slot { number, is_plugged: true, is_root: true });
        // Nothing is on the shelf yet, and choosing does not fail.
        let _ = self.shelf.reserve(&path, |_| Ok::<_, UvmError>(slot));
        self.shelf.settle(&path, &Ok(()));
    }

    /// The slot's device stays, nobody uses it.
    pub(crate) fn park(&mut self, number: u32, host_path: &str, file: FileId) {
        self.parked.insert(number, (host_path.to_owned(), file));
    }

    /// How many devices are plugged in and unused.
    pub(crate) fn parked(&self) -> usize {
        self.parked.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: u64) -> FileId {
        FileId(1, n, 4096, 0, 0)
    }

    fn add(slots: &mut Slots, path: &str, id: FileId) -> Result<Slot, UvmError> {
        match slots.reserve(path, id, 2)? {
            Reserved::First(slot) => {
                slots.shelf.settle(&path.to_owned(), &Ok(()));
                Ok(slot)
            }
            Reserved::There(slot) => Ok(slot),
            Reserved::Arriving(..) | Reserved::Leaving(_) => panic!("{path} is on its way"),
        }
    }

    fn remove(slots: &mut Slots, path: &str, id: FileId) {
        let number = slots.shelf.get(&path.to_owned()).unwrap().number;
        slots.shelf.release(&path.to_owned());
        slots.shelf.depart(&path.to_owned(), &Ok(()));
        slots.park(number, path, id);
    }

    #[test]
    fn a_parked_slot_is_counted_and_given_to_the_same_file_only() {
        let mut slots = Slots::default();
        assert_eq!(add(&mut slots, "/a", file(1)).unwrap().number, 0);
        assert_eq!(add(&mut slots, "/a", file(1)).unwrap().number, 0);
        assert!(matches!(slots.shelf.release(&"/a".to_owned()), crate::plug::Released::Used));
        remove(&mut slots, "/a", file(1));
        assert_eq!(slots.parked(), 1);
        // Another file gets another slot, and then there is none.
        assert_eq!(add(&mut slots, "/b", file(2)).unwrap().number, 1);
        assert!(matches!(add(&mut slots, "/c", file(3)), Err(UvmError::NoAvailableLocation)));
        // Not even a new file at the old path.
        assert!(matches!(add(&mut slots, "/a", file(9)), Err(UvmError::NoAvailableLocation)));
        let again = add(&mut slots, "/a", file(1)).unwrap();
        assert_eq!((again.number, again.is_plugged, slots.parked()), (0, true, 0));
    }

    #[test]
    fn a_root_image_takes_a_slot_and_is_known_by_its_path() {
        let mut slots = Slots::default();
        slots.occupy(0, "/root.img");
        assert_eq!(add(&mut slots, "/a", file(1)).unwrap().number, 1);
        assert!(matches!(add(&mut slots, "/b", file(2)), Err(UvmError::NoAvailableLocation)));
        assert_eq!(add(&mut slots, "/root.img", file(3)).unwrap().uvm_path(), "/");
        // The guest's own use of it stays.
        assert!(matches!(
            slots.shelf.release(&"/root.img".to_owned()),
            crate::plug::Released::Used
        ));
    }

    #[test]
    fn without_slots_there_is_no_location() {
        let mut slots = Slots::default();
        assert!(matches!(slots.reserve("/a", file(1), 0), Err(UvmError::NoAvailableLocation)));
    }
}
