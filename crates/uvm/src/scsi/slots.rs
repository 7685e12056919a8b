//! Where a disk sits: a controller and a unit of it. Pure.

use crate::errors::UvmError;

/// Controllers a VM can have.
pub const MAX_CONTROLLERS: u8 = 4;
/// Disks on one controller.
pub const UNITS_PER_CONTROLLER: u8 = 64;

/// The slot of a SCSI disk.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Slot {
    /// The controller, 0 to 3.
    pub controller: u8,
    /// The logical unit on it, 0 to 63.
    pub lun: u8,
}

/// The lowest free slot of a VM with so many controllers.
///
/// As in the seed, slots are counted as if all four controllers were there: the first disk that
/// would need a controller the VM has not got is one too many, and only a VM with all four can
/// have no location left.
///
/// # Errors
/// [`UvmError::NoScsiControllers`], [`UvmError::TooManyAttachments`],
/// [`UvmError::NoAvailableLocation`].
pub(crate) fn first_free(
    taken: impl Iterator<Item = Slot>,
    controllers: u8,
) -> Result<Slot, UvmError> {
    if controllers == 0 {
        return Err(UvmError::NoScsiControllers);
    }
    let taken: std::collections::BTreeSet<Slot> = taken.collect();
    let mut all = (0..MAX_CONTROLLERS)
        .flat_map(|controller| (0..UNITS_PER_CONTROLLER).map(move |lun| Slot { controller, lun }));
    let slot = all.find(|slot| !taken.contains(slot)).ok_or(UvmError::NoAvailableLocation)?;
    if slot.controller >= controllers {
        return Err(UvmError::TooManyAttachments);
    }
    Ok(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn fill(controllers: u8, disks: usize) -> (BTreeSet<Slot>, Option<UvmError>) {
        let mut taken = BTreeSet::new();
        for _ in 0..disks {
            match first_free(taken.iter().copied(), controllers) {
                Ok(slot) => assert!(taken.insert(slot), "{slot:?} was given twice"),
                Err(error) => return (taken, Some(error)),
            }
        }
        (taken, None)
    }

    #[test]
    fn the_65th_disk_on_one_controller_is_one_too_many() {
        let (taken, error) = fill(1, 65);
        assert_eq!(taken.len(), 64);
        assert!(matches!(error, Some(UvmError::TooManyAttachments)));
    }

    #[test]
    fn the_257th_disk_on_four_controllers_has_no_location() {
        let (taken, error) = fill(4, 257);
        assert_eq!(taken.len(), 256);
        assert!(matches!(error, Some(UvmError::NoAvailableLocation)));
    }

    #[test]
    fn without_a_controller_there_is_no_place_at_all() {
        assert!(matches!(fill(0, 1).1, Some(UvmError::NoScsiControllers)));
    }

    proptest! {
        #[test]
        fn the_lowest_freed_unit_is_used_again(disks in 1_usize..200, freed in any::<prop::sample::Index>()) {
            let (mut taken, _) = fill(4, disks);
            let slot = *freed.get(&taken.iter().copied().collect::<Vec<_>>());
            taken.remove(&slot);
            prop_assert_eq!(first_free(taken.iter().copied(), 4).unwrap(), slot);
        }
    }
}
