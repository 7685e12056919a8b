//! Which disks are attached, where each is mounted, and who asked. Pure.
//!
//! *Attachment* and *mounts* are counted apart: a disk is attached once, by its host path exactly as
//! given, and mounted once per guest path. A *use* is one call of add: it holds a reference to the
//! attachment and, with a guest path, one to the mount. Removing ends a use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::slots::{Slot, first_free};
use crate::errors::UvmError;
use crate::plug::{Reserved, Saved, Shelf};

/// A disk as it was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attached {
    pub(crate) slot: Slot,
    /// The name of this attachment, never used again: the guest's serial and the device's id.
    pub(crate) serial: String,
    pub(crate) read_only: bool,
}

/// A mount as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mounted {
    pub(crate) host_path: String,
    pub(crate) read_only: bool,
}

/// One add that was not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    pub(crate) host_path: String,
    /// Where it is mounted for this use.
    pub(crate) guest_path: Option<String>,
}

/// Names a use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct UseId(pub(crate) u64);

/// The SCSI disks of a VM.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) disks: Shelf<String, Attached>,
    /// By guest path.
    pub(crate) mounts: Shelf<String, Mounted>,
    uses: BTreeMap<UseId, Use>,
    counter: u64,
}

/// The disks as they are written down.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SavedDesk {
    disks: Vec<Saved<String, Attached>>,
    mounts: Vec<Saved<String, Mounted>>,
    uses: BTreeMap<u64, Use>,
    counter: u64,
}

impl SavedDesk {
    /// The slots that are taken.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.disks.iter().map(|disk| disk.value.slot).collect()
    }

    /// Mounts that were on their way in or out, by guest path.
    pub(crate) fn mounts_underway(&self) -> impl Iterator<Item = (&String, &Mounted)> {
        self.mounts.iter().filter(|mount| mount.is_underway).map(|mount| (&mount.key, &mount.value))
    }

    /// Disks that were, by host path.
    pub(crate) fn disks_underway(&self) -> impl Iterator<Item = (&String, &Attached)> {
        self.disks.iter().filter(|disk| disk.is_underway).map(|disk| (&disk.key, &disk.value))
    }
}

impl Desk {
    pub(crate) fn save(&self) -> SavedDesk {
        SavedDesk {
            disks: self.disks.save(),
            mounts: self.mounts.save(),
            uses: self.uses.iter().map(|(id, used)| (id.0, used.clone())).collect(),
            counter: self.counter,
        }
    }

    /// As it was written down. A use is noted after its disk has arrived, so a disk or a mount may
    /// have more references than uses; [`Desk::surplus`] tells.
    pub(crate) fn restore(saved: &SavedDesk) -> Self {
        Self {
            disks: Shelf::restore(&saved.disks),
            mounts: Shelf::restore(&saved.mounts),
            uses: saved.uses.iter().map(|(id, used)| (UseId(*id), used.clone())).collect(),
            counter: saved.counter,
        }
    }

    /// References that no use accounts for: mounts, and disks, each as often as it is one too many.
    pub(crate) fn surplus(&self) -> (Vec<String>, Vec<String>) {
        let of = |path: &String| self.uses.values().filter(|u| u.host_path == *path).count();
        let at = |path: &String| {
            self.uses.values().filter(|u| u.guest_path.as_ref() == Some(path)).count()
        };
        let beyond = |counted: Vec<(String, u32)>, used: &dyn Fn(&String) -> usize| {
            let times = |(path, references): (String, u32)| {
                let surplus = usize::try_from(references).unwrap_or(0).saturating_sub(used(&path));
                std::iter::repeat_n(path, surplus)
            };
            counted.into_iter().flat_map(times).collect()
        };
        (beyond(self.mounts.counted(), &at), beyond(self.disks.counted(), &of))
    }

    /// The uses there are.
    pub(crate) fn uses(&self) -> Vec<UseId> {
        self.uses.keys().copied().collect()
    }

    /// A use, looked at.
    pub(crate) fn used(&self, id: UseId) -> Option<&Use> {
        self.uses.get(&id)
    }

    /// The serial by which the guest finds a disk that is there.
    pub(crate) fn serial_of(&self, host_path: &str) -> Option<String> {
        self.disks.get(&host_path.to_owned()).map(|disk| disk.serial.clone())
    }

    /// Reserves an attachment.
    pub(crate) fn reserve_disk(
        &mut self,
        host_path: &str,
        read_only: bool,
        controllers: u8,
    ) -> Result<Reserved<Attached>, UvmError> {
        if let Some(disk) = self.disks.get(&host_path.to_owned()) {
            let wants_more = disk.read_only && !read_only;
            if wants_more {
                return Err(UvmError::AttachedReadOnly { path: host_path.to_owned() });
            }
        }
        let serial = format!("disk-{}", self.counter + 1);
        let reserved = self.disks.reserve(&host_path.to_owned(), |shelf| {
            let slot = first_free(shelf.iter().map(|(_, disk)| disk.slot), controllers)?;
            Ok(Attached { slot, serial, read_only })
        });
        if matches!(reserved, Ok(Reserved::First(_))) {
            self.counter += 1;
        }
        reserved
    }

    /// Reserves a mount. The disk is referenced by the caller already.
    pub(crate) fn reserve_mount(
        &mut self,
        guest_path: &str,
        wanted: &Mounted,
    ) -> Result<Reserved<Mounted>, UvmError> {
        if let Some(there) = self.mounts.get(&guest_path.to_owned())
            && there != wanted
        {
            let (guest_path, holder) = (guest_path.to_owned(), there.host_path.clone());
            return Err(UvmError::GuestPathTaken { guest_path, holder });
        }
        self.mounts.reserve(&guest_path.to_owned(), |_| Ok(wanted.clone()))
    }

    /// Notes a use.
    pub(crate) fn begin(&mut self, used: Use) -> UseId {
        self.counter += 1;
        let id = UseId(self.counter);
        self.uses.insert(id, used);
        id
    }

    /// Takes a use off the desk while it is being removed.
    pub(crate) fn take(&mut self, id: UseId) -> Option<Use> {
        self.uses.remove(&id)
    }

    /// Takes the latest use of a disk.
    pub(crate) fn take_latest(&mut self, host_path: &str) -> Option<(UseId, Use)> {
        let id = self.latest(host_path)?;
        Some((id, self.uses.remove(&id)?))
    }

    /// Puts it back when that failed.
    pub(crate) fn put_back(&mut self, id: UseId, used: Use) {
        self.uses.insert(id, used);
    }

    /// The latest use of a disk.
    fn latest(&self, host_path: &str) -> Option<UseId> {
        let mut newest_first = self.uses.iter().rev();
        newest_first.find(|(_, used)| used.host_path == host_path).map(|(id, _)| *id)
    }

    /// Where a disk is mounted; the first path it was given, empty if it has none.
    pub(crate) fn guest_path(&self, host_path: &str) -> Option<String> {
        self.disks.get(&host_path.to_owned())?;
        let mut used = self.uses.values().filter(|used| used.host_path == host_path);
        Some(used.find_map(|used| used.guest_path.clone()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(desk: &mut Desk, path: &str, read_only: bool) -> Attached {
        let Ok(Reserved::First(disk)) = desk.reserve_disk(path, read_only, 1) else { panic!() };
        desk.disks.settle(&path.to_owned(), &Ok(()));
        disk
    }

    #[test]
    fn a_disk_is_known_by_its_path_exactly_as_given() {
        let mut desk = Desk::default();
        let first = attach(&mut desk, "/a", false);
        let other = attach(&mut desk, "/./a", false);
        assert_ne!(first.slot, other.slot);
        assert_ne!(first.serial, other.serial);
        assert!(
            matches!(desk.reserve_disk("/a", false, 1), Ok(Reserved::There(disk)) if disk == first)
        );
    }

    #[test]
    fn a_disk_attached_read_only_is_not_handed_out_writable() {
        let mut desk = Desk::default();
        attach(&mut desk, "/a", true);
        assert!(matches!(desk.reserve_disk("/a", true, 1), Ok(Reserved::There(_))));
        let refused = desk.reserve_disk("/a", false, 1).unwrap_err();
        assert!(matches!(refused, UvmError::AttachedReadOnly { path } if path == "/a"));
        assert_eq!(desk.disks.references(&"/a".to_owned()), 2);
    }

    #[test]
    fn different_disks_at_one_guest_path_are_refused_by_name() {
        let mut desk = Desk::default();
        let mount = |path: &str| Mounted { host_path: path.to_owned(), read_only: false };
        assert!(matches!(desk.reserve_mount("/m", &mount("/a")), Ok(Reserved::First(_))));
        assert!(matches!(desk.reserve_mount("/m", &mount("/a")), Ok(Reserved::Arriving(..))));
        let refused = desk.reserve_mount("/m", &mount("/b")).unwrap_err();
        assert_eq!(refused.to_string(), "/m in the guest is taken by /a");
    }

    #[test]
    fn uses_end_last_first_and_the_first_path_is_the_disks() {
        let mut desk = Desk::default();
        attach(&mut desk, "/a", false);
        let bare = desk.begin(Use { host_path: "/a".to_owned(), guest_path: None });
        assert_eq!(desk.guest_path("/a").as_deref(), Some(""));
        let mounted = Use { host_path: "/a".to_owned(), guest_path: Some("/m".to_owned()) };
        let later = desk.begin(mounted.clone());
        assert_eq!(desk.guest_path("/a").as_deref(), Some("/m"));
        assert_eq!(desk.latest("/a"), Some(later));
        assert_eq!(desk.take(later), Some(mounted.clone()));
        assert_eq!(desk.latest("/a"), Some(bare));
        desk.put_back(later, mounted);
        assert_eq!(desk.latest("/a"), Some(later));
        assert_eq!(desk.guest_path("/b"), None);
    }
}
