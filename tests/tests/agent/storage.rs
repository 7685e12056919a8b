//! Mounts come and go without a trace.

use crate::support::{LAYER, Machine, chain};

#[tokio::test]
async fn a_root_and_its_folder_go_when_they_are_removed() {
    let machine = Machine::boot().await;
    let root = machine.root("c").await;
    // Two mounts on one path: the first removal uncovers the second and deletes nothing.
    machine.vm.combine_layers_lcow(&[LAYER], Some("/run/scratch/other"), &root).await.unwrap();
    machine.vm.remove_combined_layers(&root).await.unwrap();
    let still = machine.shell(&format!("test -x {root}/bin/busybox && echo there")).await;
    assert_eq!(still.stdout, "there\n");
    machine.vm.remove_combined_layers(&root).await.unwrap();
    let left = machine.shell("ls /run/gcs/c; grep -c overlay /proc/mounts").await;
    assert_eq!(left.stdout, "0\n", "{left:?}");
    // Once more is no error: it is what was wanted.
    machine.vm.remove_combined_layers(&root).await.unwrap();
    machine.close().await;
}

#[tokio::test]
async fn a_layer_that_is_not_there_is_named_and_leaves_no_mount_point() {
    let machine = Machine::boot().await;
    let combined = machine.vm.combine_layers_lcow(&["/run/nothing"], None, "/run/root").await;
    let error = combined.unwrap_err();
    assert!(chain(&error).contains("/run/root"), "{}", chain(&error));
    assert_eq!(machine.shell("ls -d /run/root").await.code, 1);
    machine.close().await;
}
