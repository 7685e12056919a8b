//! PCI devices, when they may not be assigned, when one half fails, and how their uses are counted.

use std::sync::atomic::Ordering;

use coracle_bridge::message::{Resource, Verb};
use coracle_uvm::schema::{VirtualPciDevice, VirtualPciFunction};
use coracle_uvm::vpci::VpciError;
use coracle_uvm::{UtilityVm, UvmError};

use crate::support::{Guest, Rig, chain};

fn edu() -> VirtualPciDevice {
    VirtualPciDevice::at("emulated:edu")
}

fn count(rig: &Rig, effect: &str) -> usize {
    rig.vmm.log().iter().filter(|done| **done == effect).count()
}

async fn started(rig: &Rig) -> UtilityVm {
    let vm = rig.create_with(|opts| opts.vpci_enabled = true).await.unwrap();
    vm.start().await.unwrap();
    vm
}

#[tokio::test]
async fn a_vm_without_vpci_refuses_every_device() {
    let rig = Rig::new(Guest::default());
    let vm = rig.started().await;
    let error = vm.assign_device(edu()).await.unwrap_err();
    assert!(matches!(error, UvmError::VpciDisabled), "{error}");
    assert!(error.help().unwrap().contains("vpci_enabled"));
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}

#[tokio::test]
async fn what_a_device_needs_of_its_vm_is_asked_for_before_the_host_is_touched() {
    let rig = Rig::new(Guest::default());
    let vm = started(&rig).await;
    for path in ["0000:3b:00.0", "/sys/bus/mdev/devices/0"] {
        let error = vm.assign_device(VirtualPciDevice::at(path)).await.unwrap_err();
        assert!(matches!(error, UvmError::VpciMemory), "{path}: {error}");
    }
    for path in ["vhost-user-blk:/nowhere", "vhost-user-scsi:/nowhere"] {
        let error = vm.assign_device(VirtualPciDevice::at(path)).await.unwrap_err();
        assert!(matches!(error, UvmError::MemoryNotShared), "{path}: {error}");
    }
    let error = vm.assign_device(VirtualPciDevice::default()).await.unwrap_err();
    assert!(chain(&error).contains("one function, not 0"), "{}", chain(&error));
    let of_edu = VirtualPciDevice {
        functions: vec![VirtualPciFunction {
            device_instance_path: "emulated:edu".to_owned(),
            virtual_function: 3,
        }],
    };
    let error = vm.assign_device(of_edu).await.unwrap_err();
    assert!(chain(&error).contains("has no virtual functions"), "{}", chain(&error));
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_device_this_host_lacks_is_named_and_nothing_is_plugged_in() {
    let rig = Rig::new(Guest::default());
    let create = |opts: &mut coracle_uvm::options::OptionsLcow| {
        opts.vpci_enabled = true;
        opts.options.allow_overcommit = false;
    };
    let vm = rig.create_with(create).await.unwrap();
    vm.start().await.unwrap();
    // No machine has a device there.
    let error = vm.assign_device(VirtualPciDevice::at("ffff:ff:1f.7")).await.unwrap_err();
    assert_eq!(chain(&error), "PCI device ffff:ff:1f.7: this host has no PCI device ffff:ff:1f.7");
    let folder = rig.folder().to_str().unwrap().to_owned();
    let no_device = VirtualPciDevice::at("/sys/devices");
    let error = vm.assign_device(no_device).await.unwrap_err();
    assert!(matches!(error, UvmError::Vpci { source: VpciError::NotMediated { .. }, .. }));
    let error = vm.assign_device(VirtualPciDevice::at(folder)).await.unwrap_err();
    assert!(matches!(error, UvmError::Vpci { source: VpciError::Path { .. }, .. }));
    assert!(error.help().unwrap().contains("0000:3b:00.0"));
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_device_assigned_twice_is_plugged_in_once_and_unplugged_with_its_last_use() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = started(&rig).await;
    let first = vm.assign_device(edu()).await.unwrap();
    let second = vm.assign_device(edu()).await.unwrap();
    assert_eq!((&first.id, first.address), (&second.id, second.address));
    assert_eq!(vm.assigned_devices()["emulated:edu"], (first.id.clone(), first.address));
    first.release().await.unwrap();
    assert_eq!((count(&rig, "plug"), count(&rig, "unplug")), (1, 0));
    vm.remove_device(&first.id.to_uppercase()).await.unwrap();
    assert_eq!(count(&rig, "unplug"), 1);
    let error = second.release().await.unwrap_err();
    assert_eq!(error.to_string(), format!("no device with ID {} is assigned", second.id));
    let told: Vec<(Verb, String)> = service
        .changes
        .lock()
        .unwrap()
        .iter()
        .filter_map(|change| match &change.resource {
            Resource::VpciDevice(device) => {
                Some((change.verb, device.coracle.clone().unwrap().address))
            }
            _ => None,
        })
        .collect();
    let at = "0000:01:02.0".to_owned();
    assert_eq!(told, [(Verb::Add, at.clone()), (Verb::Remove, at)]);
    vm.close().await.unwrap();
    rig.assert_clean().await;
}

#[tokio::test]
async fn a_device_either_side_refuses_is_gone_and_can_be_assigned_again() {
    let guest = Guest::default();
    let service = guest.service.clone();
    let rig = Rig::new(guest);
    let vm = started(&rig).await;
    for effect in ["plug", "pci_address"] {
        rig.vmm.fail(effect);
        let error = vm.assign_device(edu()).await.unwrap_err();
        assert!(chain(&error).starts_with("failed to assign the device emulated:edu"), "{error}");
        rig.vmm.mend(effect);
    }
    service.refuses_changes.store(true, Ordering::Relaxed);
    vm.assign_device(edu()).await.unwrap_err();
    service.refuses_changes.store(false, Ordering::Relaxed);
    assert!(vm.assigned_devices().is_empty());
    assert_eq!(count(&rig, "unplug"), 2, "once for the address, once for the guest");
    let device = vm.assign_device(edu()).await.unwrap();
    service.refuses_changes.store(true, Ordering::Relaxed);
    device.release().await.unwrap_err();
    service.refuses_changes.store(false, Ordering::Relaxed);
    rig.vmm.fail("unplug");
    device.release().await.unwrap_err();
    rig.vmm.mend("unplug");
    assert_eq!(vm.assigned_devices().len(), 1);
    device.release().await.unwrap();
    vm.close().await.unwrap();
}

#[tokio::test]
async fn a_vhost_user_server_that_is_not_there_is_named() {
    let rig = Rig::new(Guest::default());
    let create = |opts: &mut coracle_uvm::options::OptionsLcow| {
        opts.vpci_enabled = true;
        opts.host.share_memory = true;
    };
    let vm = rig.create_with(create).await.unwrap();
    vm.start().await.unwrap();
    let socket = rig.folder().join("no.sock");
    let socket = socket.to_str().unwrap();
    let error = vm.add_vhost_user_disk(socket, "/run/m", "", false).await.unwrap_err();
    assert!(chain(&error).contains(&format!("dial {socket}")), "{}", chain(&error));
    assert!(matches!(
        vm.add_vhost_user_disk(socket, "", "", false).await,
        Err(UvmError::NoUvmPath)
    ));
    assert_eq!(count(&rig, "plug"), 0);
    vm.close().await.unwrap();
}
