//! Each way to boot, each memory backing.

use coracle_uvm::State;
use coracle_uvm::options::{OptionsLcow, PreferredRootFsType};

use crate::support::Place;

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
