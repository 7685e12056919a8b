//! SCSI disks on a VM that runs: attached, mounted, counted, taken away, and refused.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_uvm::scsi::{DiskKind, DiskRequest, VmAccessType};
use coracle_uvm::{UtilityVm, UvmError};

use crate::support::{Place, chain, image, root_disk, sh, within};

fn blank(folder: &Path, name: &str) -> String {
    let path: PathBuf = folder.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn add(vm: &UtilityVm, path: &str, at: &str, read_only: bool) -> Result<String, UvmError> {
    let added = within("the add", vm.add_scsi(path, at, read_only, VmAccessType::Individual)).await;
    added.map(|mount| mount.uvm_path.clone())
}

async fn remove(vm: &UtilityVm, path: &str) -> Result<(), UvmError> {
    within("the remove", vm.remove_scsi(path)).await
}

async fn disks(vm: &UtilityVm) -> usize {
    sh(vm, "ls /sys/class/scsi_disk 2>/dev/null | wc -l").await.trim().parse().unwrap()
}

/// One VM, told as one story: each step stands on the one before.
#[tokio::test(flavor = "multi_thread")]
async fn disks_come_and_go_and_are_counted() {
    let place = Place::new();
    let started = place.started(|o| o.host.cold_disks = vec![root_disk(o)]).await;
    let vm = &started.vm;
    let (a, b) = (image(place.path(), "a"), image(place.path(), "b"));

    // Attached alone, then mounted: the path is what was asked for, not empty.
    assert_eq!(add(vm, &a, "", false).await.unwrap(), "");
    assert_eq!(vm.get_scsi_uvm_path(&a).unwrap(), "");
    assert_eq!(add(vm, &a, "/run/mounts/m1", false).await.unwrap(), "/run/mounts/m1");
    assert_eq!(sh(vm, "cat /run/mounts/m1/name").await, "a");
    // A use without a path gets the path the disk has.
    assert_eq!(add(vm, &a, "", false).await.unwrap(), "/run/mounts/m1");

    // One disk at several paths; read-only and writable told apart.
    assert_eq!(add(vm, &a, "/run/mounts/m2", true).await.unwrap(), "/run/mounts/m2");
    sh(vm, "echo x > /run/mounts/m1/x && cat /run/mounts/m2/x").await;
    let refused = sh(vm, "echo y > /run/mounts/m2/y || echo refused").await;
    assert_eq!(refused, "refused\n");

    // Another disk at a path that is taken, and a writable use of a read-only disk.
    let error = add(vm, &b, "/run/mounts/m1", false).await.unwrap_err();
    assert!(matches!(&error, UvmError::GuestPathTaken { holder, .. } if *holder == a), "{error}");
    assert!(matches!(vm.get_scsi_uvm_path(&b), Err(UvmError::NotAttached)));
    assert_eq!(disks(vm).await, 1, "the disk that had no place is not left attached");
    add(vm, &b, "", true).await.unwrap();
    let error = add(vm, &b, "/run/mounts/m3", false).await.unwrap_err();
    assert!(matches!(error, UvmError::AttachedReadOnly { .. }), "{error}");

    // Five uses in all; the disk goes with the last.
    for left in [1, 1, 1] {
        remove(vm, &a).await.unwrap();
        assert_eq!(disks(vm).await, 1 + left);
    }
    remove(vm, &a).await.unwrap();
    assert_eq!(disks(vm).await, 1);
    assert!(matches!(remove(vm, &a).await, Err(UvmError::NotAttached)));
    assert_eq!(sh(vm, "ls /run/mounts").await, "");
    remove(vm, &b).await.unwrap();

    // The guest cannot mount it: nothing stays.
    let blank = blank(place.path(), "blank");
    let error = add(vm, &blank, "/run/mounts/m4", false).await.unwrap_err();
    assert!(chain(&error).contains("holds no file system"), "{}", chain(&error));
    assert!(matches!(vm.get_scsi_uvm_path(&blank), Err(UvmError::NotAttached)));
    assert_eq!(disks(vm).await, 0);
    assert!(matches!(add(vm, "/no/such", "", false).await, Err(UvmError::Source { .. })));

    // A file that is deleted while it is attached stays what it was until it is removed.
    add(vm, &b, "/run/mounts/m5", false).await.unwrap();
    std::fs::remove_file(&b).unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/m5/name").await, "b");
    remove(vm, &b).await.unwrap();

    // Other file systems and formats.
    for (name, make) in [
        ("q.qcow2", "qemu-img create -q -f qcow2"),
        ("v.vhd", "qemu-img create -q -f vpc"),
        ("x.vhdx", "qemu-img create -q -f vhdx"),
    ] {
        let path = place.path().join(name).to_str().unwrap().to_owned();
        let made = Command::new("sh").args(["-c", &format!("{make} {path} 8M")]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        add(vm, &path, "", false).await.unwrap();
        let sectors: u64 = sh(vm, "cat /sys/block/sda/size").await.trim().parse().unwrap();
        assert!(sectors * 512 >= 8 << 20, "{name} has {sectors} sectors");
        remove(vm, &path).await.unwrap();
    }
    let erofs = vm_root(&place);
    let request = DiskRequest {
        host_path: erofs.clone(),
        kind: DiskKind::of_image(&erofs),
        guest_path: "/run/mounts/m6".to_owned(),
        read_only: true,
        filesystem: "erofs".to_owned(),
    };
    let mount = vm.add_disk(request).await.unwrap();
    sh(vm, "test -x /run/mounts/m6/bin/busybox").await;
    mount.release().await.unwrap();
    assert!(matches!(mount.release().await, Err(UvmError::NotAttached)));
    assert_eq!(disks(vm).await, 0);
    a_place_is_taken_over_from_a_disk_the_kernel_still_knows(vm, place.path()).await;
    started.close().await;
}

/// Somebody in the guest has the kernel look for disks while one is taken away: it finds the one that
/// goes once more, and keeps it. The next disk there is another, and must be seen to be.
async fn a_place_is_taken_over_from_a_disk_the_kernel_still_knows(vm: &UtilityVm, folder: &Path) {
    let (old, new) = (image(folder, "old"), image(folder, "new"));
    sh(
        vm,
        "while :; do echo '0 0 0' > /sys/class/scsi_host/host0/scan; done >/dev/null 2>&1 & \
         echo $! > /run/looker",
    )
    .await;
    for _ in 0..20 {
        add(vm, &old, "", false).await.unwrap();
        remove(vm, &old).await.unwrap();
        if disks(vm).await == 1 {
            break;
        }
    }
    sh(vm, "kill $(cat /run/looker)").await;
    assert_eq!(disks(vm).await, 1, "the kernel never knew of a disk that was gone");
    add(vm, &new, "/run/mounts/new", false).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/new/name").await, "new");
    remove(vm, &new).await.unwrap();
    assert_eq!(disks(vm).await, 0);
}

fn vm_root(place: &Place) -> String {
    place.options().boot_files_path.join("rootfs.erofs").to_str().unwrap().to_owned()
}

/// The seed's TestSCSIAddRemoveLCOW and TestParallelScsiOps: all 64 units, the 65th refused, all
/// again, all removed twice; then sixteen tasks at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_controller_and_sixteen_tasks_at_once() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.options.memory_size_in_mb = 512;
            o.host.cold_disks = vec![root_disk(o)];
        })
        .await;
    let vm = &started.vm;
    let paths: Vec<String> = (0..64).map(|n| blank(place.path(), &format!("d{n}"))).collect();
    for path in &paths {
        add(vm, path, "", false).await.unwrap();
    }
    assert_eq!(disks(vm).await, 64);
    let many = blank(place.path(), "one-too-many");
    assert!(matches!(add(vm, &many, "", false).await, Err(UvmError::TooManyAttachments)));
    for _ in 0..2 {
        add(vm, &paths[63], "", false).await.unwrap();
        remove(vm, &paths[63]).await.unwrap();
    }
    let removals = paths.iter().map(|path| vm.remove_scsi(path));
    for removed in futures::future::join_all(removals).await {
        removed.unwrap();
    }
    assert_eq!(disks(vm).await, 0);

    let one = image(place.path(), "shared");
    let tasks = (0..16).map(|n| {
        let (vm, one) = (vm.clone(), one.clone());
        let own = image(place.path(), &format!("own{n}"));
        tokio::spawn(async move {
            for round in 0..3 {
                add(&vm, &own, "", false).await.unwrap();
                remove(&vm, &own).await.unwrap();
                let at = format!("/run/mounts/t{n}");
                let mount = vm.add_scsi(&own, &at, false, VmAccessType::Noop).await.unwrap();
                assert_eq!(sh(&vm, &format!("cat {at}/name")).await, format!("own{n}"), "{round}");
                add(&vm, &one, "/run/mounts/one", true).await.unwrap();
                assert_eq!(sh(&vm, "cat /run/mounts/one/name").await, "shared");
                remove(&vm, &one).await.unwrap();
                mount.release().await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!((disks(vm).await, sh(vm, "ls /run/mounts").await), (0, String::new()));
    started.close().await;
}
