//! Each way to boot, each memory backing.

use coracle_uvm::State;
use coracle_uvm::options::{OptionsLcow, PreferredRootFsType};

use crate::support::{Place, image, sh_with};

/// Boots, asks for the capabilities, closes.
async fn boots(change: impl FnOnce(&mut OptionsLcow)) {
    let place = Place::new();
    let started = place.started(change).await;
    assert_eq!(started.vm.state(), State::Running);
    // The seed's TestPropertiesGuestConnection_LCOW.
    assert_eq!(started.vm.capabilities().0, 4);
    assert!(started.vm.signal_process_supported());
    started.close().await;
}

fn root_image(opts: &mut OptionsLcow) {
    opts.root_fs_file = "root.img".to_owned();
    opts.preferred_root_fs_type = PreferredRootFsType::Vhd;
}

fn firmware(opts: &mut OptionsLcow) {
    opts.kernel_direct = false;
    opts.kernel_file = "kernel".to_owned();
}

/// The seed's TestLCOWUVMNoSCSINoVPMemInitrd and TestLCOWUVMStart_KernelDirect_InitRd, with
/// pageable memory.
#[tokio::test]
async fn an_initrd_boots_directly_without_any_device_slot() {
    boots(|o| (o.scsi_controller_count, o.vpmem_device_count) = (0, 0)).await;
}

/// The seed's TestLCOWUVMNoSCSISingleVPMemVHD and TestLCOWUVMStart_KernelDirect_VHD, with
/// deferred commit.
#[tokio::test]
async fn a_root_image_boots_directly_on_the_only_pmem_device() {
    boots(|o| {
        root_image(o);
        (o.scsi_controller_count, o.vpmem_device_count) = (0, 1);
        o.options.enable_deferred_commit = true;
    })
    .await;
}

/// The root's file is known by its whole path, and a layer gets the slot after it.
#[tokio::test]
async fn a_layer_beside_a_root_image_gets_the_slot_after_it() {
    let place = Place::new();
    let started = place
        .started(|o| {
            root_image(o);
            o.vpmem_device_count = 2;
        })
        .await;
    let vm = &started.vm;
    let root = place.options().boot_files_path.join("root.img");
    assert_eq!(vm.add_vpmem(root.to_str().unwrap()).await.unwrap(), "/");
    vm.remove_vpmem(root.to_str().unwrap()).await.unwrap();
    let layer = image(place.path(), "layer");
    assert_eq!(vm.add_vpmem(&layer).await.unwrap(), "/run/layers/p1");
    assert_eq!(sh_with("/bin/busybox", vm, "cat /run/layers/p1/name").await, "layer");
    vm.remove_vpmem(&layer).await.unwrap();
    started.close().await;
}

/// The seed's TestLCOWTimeUVMStartInitRD, with physically backed memory.
#[tokio::test]
async fn an_initrd_boots_by_firmware() {
    boots(|o| {
        firmware(o);
        o.options.allow_overcommit = false;
    })
    .await;
}

/// The seed's TestLCOWTimeUVMStartVHD.
#[tokio::test]
async fn a_root_image_boots_by_firmware() {
    boots(|o| {
        firmware(o);
        root_image(o);
    })
    .await;
}
