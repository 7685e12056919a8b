//! The room behind the bridge: 31 places for whatever is plugged in, whichever kind it is.

use std::fs;

use coracle_uvm::modify::ModifyError;
use coracle_uvm::schema::VirtualPciDevice;
use coracle_uvm::{UtilityVm, UvmError};
use coracle_vmm::VmmError;

use crate::support::{Place, image, root_disk, sh};

fn is_full(error: &UvmError) -> bool {
    matches!(error, UvmError::Modify { source: ModifyError::Adding(VmmError::Full { .. }), .. })
}

async fn devices_behind_the_bridge(vm: &UtilityVm) -> usize {
    let list = sh(vm, "ls /sys/bus/pci/devices").await;
    list.lines().filter(|address| address.starts_with("0000:01:")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_has_its_place_behind_the_bridge_and_a_parked_pmem_keeps_its() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true;
            o.vpci_enabled = true;
            o.vpmem_device_count = 3;
            o.vpmem_size_bytes = 16 << 20;
        })
        .await;
    let vm = &started.vm;
    let tree = place.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let tree = tree.to_str().unwrap();

    // One place is the entropy's. Three are pmem's, two of them parked; one is a PCI device's.
    for name in ["a", "b", "c"] {
        vm.add_vpmem(&image(place.path(), name)).await.unwrap();
    }
    for name in ["a", "b"] {
        vm.remove_vpmem(place.path().join(name).to_str().unwrap()).await.unwrap();
    }
    assert_eq!(vm.parked_vpmem(), 2);
    let edu = vm.assign_device(VirtualPciDevice::at("emulated:edu")).await.unwrap();
    // SCSI disks, 9P shares and pipes take none.
    let disk = image(place.path(), "disk");
    vm.add_scsi(&disk, "/run/mounts/d", true, coracle_uvm::scsi::VmAccessType::Noop).await.unwrap();
    let nine = vm.add_plan9(tree, "/run/mounts/9", true, false, &[]).await.unwrap();
    let mut shares = Vec::new();
    let error = loop {
        let at = format!("/run/mounts/s{}", shares.len());
        match vm.add_virtiofs(tree, &at, true).await {
            Ok(share) => shares.push(share),
            Err(error) => break error,
        }
    };
    assert!(is_full(&error), "{error:?}");
    assert_eq!((shares.len(), devices_behind_the_bridge(vm).await), (27, 32));
    let other = vm.add_vpmem(place.path().join("a").to_str().unwrap()).await;
    assert!(other.is_ok(), "a parked device has its place: {other:?}");

    // What goes makes room, for another kind too.
    shares.pop().unwrap().release().await.unwrap();
    edu.release().await.unwrap();
    shares.push(vm.add_virtiofs(tree, "/run/mounts/again", true).await.unwrap());
    vm.assign_device(VirtualPciDevice::at("emulated:edu")).await.unwrap();
    let error = vm.add_virtiofs(tree, "/run/mounts/more", true).await.unwrap_err();
    assert!(is_full(&error), "{error:?}");
    nine.release().await.unwrap();
    started.close().await;
}
