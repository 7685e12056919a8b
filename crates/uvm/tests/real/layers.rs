//! Layers as a caller of the seed uses them: each a disk of its own, combined to roots that share them.

use coracle_uvm::UtilityVm;
use coracle_uvm::scsi::{ScsiMount, VmAccessType};

use crate::support::{Place, image, root_disk, sh};

/// Mounts each layer, or counts one more use of it, and combines them at the container's root.
async fn root(vm: &UtilityVm, id: &str, layers: &[String]) -> (Vec<ScsiMount>, String) {
    let mut mounts = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let at = format!("/run/mounts/m{n}");
        mounts.push(vm.add_scsi(layer, &at, true, VmAccessType::Group).await.unwrap());
    }
    let paths: Vec<&str> = mounts.iter().map(|mount| mount.uvm_path.as_str()).collect();
    let (scratch, rootfs) = (format!("/run/gcs/c/{id}/scratch"), format!("/run/gcs/c/{id}/rootfs"));
    vm.combine_layers_lcow(&paths, Some(&scratch), &rootfs).await.unwrap();
    (mounts, rootfs)
}

/// The seed's RunContainer_ZeroVPMEM_Multiple: what two roots share stays when the first goes.
#[tokio::test(flavor = "multi_thread")]
async fn two_roots_share_the_layers_of_an_image() {
    let place = Place::new();
    let started = place.started(|o| o.host.cold_disks = vec![root_disk(o)]).await;
    let vm = &started.vm;
    let layers: Vec<String> =
        (0..12).map(|n| image(place.path(), &format!("layer{n:02}"))).collect();
    let (first_mounts, first) = root(vm, "one", &layers).await;
    let (second_mounts, second) = root(vm, "two", &layers).await;
    let disks = "ls /sys/block | grep -c sd";
    assert_eq!(sh(vm, disks).await, "12\n", "each layer is attached once");
    // The first layer given is the top-most.
    assert_eq!(
        sh(vm, &format!("cat {first}/name; ls {first} | grep -c only-")).await,
        "layer0012\n"
    );

    sh(vm, &format!("echo mine > {first}/file")).await;
    vm.remove_combined_layers(&first).await.unwrap();
    for mount in first_mounts.iter().rev() {
        mount.release().await.unwrap();
    }
    assert_eq!(sh(vm, &format!("ls {first} 2>/dev/null | wc -l")).await, "0\n");
    assert_eq!(
        sh(vm, &format!("cat {second}/only-layer11; ls {second}/file 2>/dev/null | wc -l")).await,
        "layer110\n"
    );
    assert_eq!(sh(vm, disks).await, "12\n");
    vm.remove_combined_layers(&second).await.unwrap();
    for mount in second_mounts.iter().rev() {
        mount.release().await.unwrap();
    }
    assert_eq!(sh(vm, "ls /sys/block | grep -c sd || true; ls /run/mounts").await, "0\n");
    // Taking away what is not there is what was wanted.
    vm.remove_combined_layers(&second).await.unwrap();
    started.close().await;
}
