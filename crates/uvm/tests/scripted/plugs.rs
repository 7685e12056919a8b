//! What is plugged in, when one half or the other fails, and when callers come together or go away.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_bridge::message::{Resource, Verb};
use coracle_uvm::scsi::VmAccessType;
use coracle_uvm::{UtilityVm, UvmError};

use crate::support::{Guest, Rig, chain, within};

fn disk(rig: &Rig, name: &str) -> String {
    let path = rig.folder().join(name);
    File::create(&path).unwrap().set_len(4096).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn add(vm: &UtilityVm, path: &str, at: &str) -> Result<(), UvmError> {
    vm.add_scsi(path, at, false, VmAccessType::Noop).await.map(drop)
}

fn count(rig: &Rig, effect: &str) -> usize {
    rig.vmm.log().iter().filter(|done| **done == effect).count()
}

#[tokio::test]
async fn a_disk_the_guest_refuses_is_unplugged_and_its_slot_is_free() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    let (a, b) = (disk(&rig, "a"), disk(&rig, "b"));
    service.refuses_changes.store(true, Ordering::Relaxed);
    let error = add(&vm, &a, "/run/m").await.unwrap_err();
    assert!(chain(&error).starts_with("failed to modify UVM with new SCSI mount"), "{error}");
    assert_eq!((count(&rig, "plug"), count(&rig, "unplug")), (1, 1));
    assert!(matches!(vm.get_scsi_uvm_path(&a), Err(UvmError::NotAttached)));
    service.refuses_changes.store(false, Ordering::Relaxed);
    let mount = vm.add_scsi(&b, "/run/m", false, VmAccessType::Noop).await.unwrap();
    assert_eq!((mount.controller, mount.lun, mount.uvm_path.as_str()), (0, 0, "/run/m"));
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_disk_the_host_refuses_never_reaches_the_guest() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    rig.vmm.fail("plug");
    let error = add(&vm, &disk(&rig, "a"), "/run/m").await.unwrap_err();
    assert!(chain(&error).contains("adding VM resources"), "{}", chain(&error));
    assert!(service.changes.lock().unwrap().is_empty());
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_remove_that_fails_on_either_side_can_be_tried_again() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    let a = disk(&rig, "a");
    add(&vm, &a, "/run/m").await.unwrap();
    service.refuses_changes.store(true, Ordering::Relaxed);
    let error = vm.remove_scsi(&a).await.unwrap_err();
    assert!(chain(&error).starts_with("failed to remove SCSI disk"), "{}", chain(&error));
    assert_eq!((vm.get_scsi_uvm_path(&a).unwrap().as_str(), count(&rig, "unplug")), ("/run/m", 0));
    service.refuses_changes.store(false, Ordering::Relaxed);
    rig.vmm.fail("unplug");
    let error = vm.remove_scsi(&a).await.unwrap_err();
    assert!(chain(&error).contains("removing VM resources"), "{}", chain(&error));
    // The mount is gone, the disk is not.
    assert_eq!(vm.get_scsi_uvm_path(&a).unwrap(), "");
    rig.vmm.mend("unplug");
    vm.remove_scsi(&a).await.unwrap();
    assert!(matches!(vm.remove_scsi(&a).await, Err(UvmError::NotAttached)));
    vm.close().await.unwrap();
}

#[tokio::test]
async fn callers_for_one_disk_wait_for_the_first_and_share_its_fate() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let a = disk(&rig, "a");
    for works in [true, false] {
        if !works {
            rig.vmm.fail("plug");
        }
        rig.vmm.fail("slowly");
        let before = count(&rig, "plug");
        let callers = (0..8).map(|_| add(&vm, &a, ""));
        let results = futures::future::join_all(callers).await;
        assert_eq!(count(&rig, "plug"), before + 1, "it is plugged in once");
        assert!(results.iter().all(|result| result.is_ok() == works), "{results:?}");
        if works {
            // Each remove ends a use of its own, however many come at once.
            let removes = (0..8).map(|_| vm.remove_scsi(&a));
            for removed in futures::future::join_all(removes).await {
                removed.unwrap();
            }
        }
        assert!(matches!(vm.remove_scsi(&a).await, Err(UvmError::NotAttached)));
    }
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_half_way_leaves_nothing() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = rig.started().await;
    let a = disk(&rig, "a");
    rig.vmm.fail("slowly");
    let gave_up = tokio::time::timeout(Duration::from_millis(10), add(&vm, &a, "/run/m")).await;
    assert!(gave_up.is_err());
    within("the undoing", async {
        while count(&rig, "unplug") == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    within("the slot's release", async {
        while vm.get_scsi_uvm_path(&a).is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let verbs: Vec<(Verb, String)> = service
        .changes
        .lock()
        .unwrap()
        .iter()
        .filter_map(|change| match &change.resource {
            Resource::MappedVirtualDisk(disk) => Some((change.verb, disk.mount_path.clone())),
            _ => None,
        })
        .collect();
    let expected =
        [(Verb::Add, ""), (Verb::Add, "/run/m"), (Verb::Remove, "/run/m"), (Verb::Remove, "")];
    assert_eq!(verbs, expected.map(|(verb, path)| (verb, path.to_owned())));

    // One that goes away during an undo leaves the undo to end.
    service.refuses_changes.store(true, Ordering::Relaxed);
    let before = count(&rig, "unplug");
    let gave_up = tokio::time::timeout(Duration::from_millis(10), add(&vm, &a, "/run/m")).await;
    assert!(gave_up.is_err());
    within("the second undoing", async {
        while count(&rig, "unplug") == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn without_a_controller_there_is_no_disk_to_add_or_remove() {
    let rig = Rig::new(Guest::default());
    let vm = rig.create_with(|opts| opts.scsi_controller_count = 0).await.unwrap();
    vm.start().await.unwrap();
    let a = disk(&rig, "a");
    assert!(matches!(add(&vm, &a, "").await, Err(UvmError::NoScsiControllers)));
    assert!(matches!(vm.remove_scsi(&a).await, Err(UvmError::NoScsiControllers)));
    let physical = vm.add_scsi_physical_disk(&a, "", true).await.map(drop);
    assert!(matches!(physical, Err(UvmError::NoScsiControllers)));
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_file_is_no_physical_disk() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let error = vm.add_scsi_physical_disk(&disk(&rig, "a"), "", true).await.unwrap_err();
    assert!(chain(&error).contains("no block device"), "{}", chain(&error));
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}
