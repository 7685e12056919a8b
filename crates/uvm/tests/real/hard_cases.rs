//! What goes wrong around things that are plugged in, on a VM that runs.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coracle_uvm::options::ShareServers;
use coracle_uvm::scsi::VmAccessType;
use coracle_uvm::{State, UvmError};

use crate::support::{Place, assert_gone, chain, example, root_disk, servers, sh, within};

fn blank(folder: &Path, name: &str, mib: u64) -> String {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A guest that stands still lets go of nothing; the remove fails in time, and once the guest goes on
/// it goes through. A disk's file that shrinks or grows under it is not the VM's end.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guest_keeps_its_disks_until_it_goes_on() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.device_timeout = Duration::from_secs(2);
        })
        .await;
    let vm = &started.vm;
    let disk = blank(place.path(), "disk", 2);
    vm.add_scsi(&disk, "", false, VmAccessType::Noop).await.unwrap();

    vm.pause().await.unwrap();
    let error = within("the remove", vm.remove_scsi(&disk)).await.unwrap_err();
    assert!(chain(&error).contains("did not answer within 2 s"), "{}", chain(&error));
    assert_eq!(vm.get_scsi_uvm_path(&disk).unwrap(), "", "the disk is still there");
    // Others are refused as long, and nothing of them stays.
    let other = blank(place.path(), "other", 1);
    let error = within("the add", vm.add_scsi(&other, "", false, VmAccessType::Noop)).await;
    assert!(error.is_err());
    assert!(matches!(vm.get_scsi_uvm_path(&other), Err(UvmError::NotAttached)));
    vm.resume().await.unwrap();
    within("the second remove", vm.remove_scsi(&disk)).await.unwrap();
    assert!(matches!(vm.remove_scsi(&disk).await, Err(UvmError::NotAttached)));

    // Shrunk and grown while attached: reads beyond its end fail, the VM goes on.
    vm.add_scsi(&disk, "", false, VmAccessType::Noop).await.unwrap();
    let name = sh(vm, "ls /sys/block | grep sd").await;
    File::options().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
    let read = format!("dd if=/dev/{} of=/dev/null bs=64k 2>&1 | tail -1 || true", name.trim());
    sh(vm, &read).await;
    File::options().write(true).open(&disk).unwrap().set_len(4 << 20).unwrap();
    sh(vm, &read).await;
    vm.remove_scsi(&disk).await.unwrap();
    assert_eq!(sh(vm, "ls /sys/block | grep -c sd || true").await, "0\n");
    assert_eq!(vm.state(), State::Running);
    started.close().await;
}

/// A block device of the host: a loop device on a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_of_the_host_is_a_physical_disk() {
    let place = Place::new();
    let started = place.started(|o| o.host.cold_disks = vec![root_disk(o)]).await;
    let vm = &started.vm;
    let image = blank(place.path(), "image", 2);
    fs::write(&image, [&b"on the device"[..], &[0; (2 << 20) - 13]].concat()).unwrap();
    let device = Loop::on(&image);
    let mount = vm.add_scsi_physical_disk(&device.0, "", true).await.unwrap();
    let read = "head -c 13 /dev/$(ls /sys/block | grep sd)";
    assert_eq!(sh(vm, read).await, "on the device");
    mount.release().await.unwrap();
    started.close().await;
}

/// A loop device, detached in any case.
struct Loop(String);

impl Loop {
    fn on(image: &str) -> Self {
        let made = Command::new("losetup").args(["--find", "--show", image]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").args(["--detach", &self.0]).status().unwrap();
    }
}

/// One image in two VMs: the second is told that the first holds it, unless both only read.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_written_by_one_vm_at_a_time() {
    let place = (Place::new(), Place::new());
    let first = place.0.started(|_| {}).await;
    let second = place.1.started(|_| {}).await;
    let image = blank(place.0.path(), "image", 1);
    first.vm.add_scsi(&image, "", false, VmAccessType::Noop).await.unwrap();
    for read_only in [false, true] {
        let refused = second.vm.add_scsi(&image, "", read_only, VmAccessType::Noop).await;
        let text = chain(&refused.unwrap_err());
        assert!(text.contains("lock"), "{text}");
    }
    first.vm.remove_scsi(&image).await.unwrap();
    let reader = |started: &crate::support::Started| {
        let (vm, image) = (started.vm.clone(), image.clone());
        async move { vm.add_scsi(&image, "", true, VmAccessType::Noop).await.map(drop) }
    };
    reader(&first).await.unwrap();
    reader(&second).await.unwrap();
    first.close().await;
    second.close().await;
}

/// The directory of a share is deleted, the machine monitor dies in the middle of adds: whoever waits
/// is told, and closing leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_share_without_its_directory_and_a_vm_without_its_monitor() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true;
        })
        .await;
    let vm = &started.vm;
    for (at, by_9p) in [("/run/mounts/9", true), ("/run/mounts/v", false)] {
        let folder = place.path().join("doomed");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "x").unwrap();
        let host = folder.to_str().unwrap();
        let (nine, fast) = if by_9p {
            (Some(vm.add_plan9(host, at, false, false, &[]).await.unwrap()), None)
        } else {
            (None, Some(vm.add_virtiofs(host, at, false).await.unwrap()))
        };
        fs::remove_dir_all(&folder).unwrap();
        let seen =
            sh(vm, &format!("cat {at}/file 2>&1; echo new 2>&1 > {at}/new; ls {at}; true")).await;
        assert!(seen.contains("No such file") || seen.contains("Stale"), "{seen}");
        if let Some(share) = nine {
            share.release().await.unwrap();
        }
        if let Some(share) = fast {
            share.release().await.unwrap();
        }
    }

    let disks: Vec<String> = (0..8).map(|n| blank(place.path(), &format!("d{n}"), 1)).collect();
    let adds = disks.iter().map(|disk| {
        let (vm, disk) = (vm.clone(), disk.clone());
        tokio::spawn(async move { vm.add_scsi(&disk, "", false, VmAccessType::Noop).await })
    });
    let adds: Vec<_> = adds.collect();
    let pid = rustix::process::Pid::from_raw(i32::try_from(started.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    for add in adds {
        // Those that came before the end are there, the others were told.
        drop(within("an add on a dead VM", add).await.unwrap());
    }
    within("the VM's end", vm.wait()).await;
    let error = vm.add_scsi(&disks[0], "", false, VmAccessType::Noop).await.unwrap_err();
    assert!(matches!(error, UvmError::NotRunning { .. }), "{error}");
    let run_dir = place.run_dir();
    within("the close", vm.close()).await.unwrap();
    assert_gone(started.pid);
    assert!(!run_dir.exists());
}

/// Servers of shares that die: a 9P share fails and can be removed and added anew; a virtio-fs share
/// is broken until the VM ends, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_share_whose_server_dies_is_broken_and_says_so() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true;
            let server = example("plan9").to_str().unwrap().to_owned();
            o.host.share_servers = ShareServers::Process(vec![server]);
        })
        .await;
    let vm = &started.vm;
    let folder = place.path().join("shared");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "x").unwrap();
    let host = folder.to_str().unwrap();

    let share = vm.add_plan9(host, "/run/mounts/9", false, false, &[]).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/9/file").await, "x");
    assert!(!share.is_broken());
    kill_server("plan9", host);
    let failed = sh(vm, "cat /run/mounts/9/file 2>&1 || echo failed").await;
    assert!(failed.contains("failed"), "{failed}");
    within("the share's death", async {
        while !share.is_broken() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    within("the remove", share.release()).await.unwrap();
    let again = vm.add_plan9(host, "/run/mounts/9", false, false, &[]).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/9/file").await, "x");
    again.release().await.unwrap();

    let share = vm.add_virtiofs(host, "/run/mounts/v", false).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/v/file").await, "x");
    kill_server("virtiofsd", host);
    within("the share's death", async {
        while !share.is_broken() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let error = within("the remove", share.release()).await.unwrap_err();
    assert!(matches!(error, UvmError::ShareBroken { .. }), "{error}");
    assert!(error.help().unwrap().contains("when the VM is stopped"));
    // Everything else goes on, new shares too.
    let other = vm.add_virtiofs(host, "/run/mounts/w", false).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/w/file").await, "x");
    other.release().await.unwrap();
    started.close().await;
}

/// Kills the server of a directory.
fn kill_server(program: &str, directory: &str) {
    let servers = servers(program, Path::new(directory));
    assert!(!servers.is_empty(), "there is no {program} for {directory}");
    let pid = rustix::process::Pid::from_raw(servers[0]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
