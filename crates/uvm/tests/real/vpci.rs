//! PCI devices on a VM that runs: one QEMU makes up, and disks a real vhost-user server serves. What
//! needs an IOMMU is proven in the lab host.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_uvm::schema::VirtualPciDevice;
use coracle_uvm::{UtilityVm, UvmError};

use crate::support::{Place, chain, image, root_disk, sh, within};

/// A server of one disk, killed when dropped.
struct Server(Child);

impl Server {
    /// Serves `image` on `socket` as `kind` (`vhost-user-blk`).
    async fn start(image: &str, socket: &Path) -> Self {
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={image}"))
            .args(["--blockdev", "driver=raw,node-name=disk,file=file"])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,\
                 addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon is installed (Debian package qemu-system-common)");
        let server = Self(child);
        within("the server's socket", async {
            while !socket.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn try_sh(vm: &UtilityVm, command: &str) -> String {
    sh(vm, &format!("({command}) 2>&1 || echo failed")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pci_devices_come_and_go_and_a_served_disk_is_mounted() {
    let place = Place::new();
    let started = place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true;
            o.vpci_enabled = true;
        })
        .await;
    let vm = &started.vm;

    // QEMU's own device, three times over: the guest sees it where we are told.
    for _ in 0..3 {
        let edu = vm.assign_device(VirtualPciDevice::at("emulated:edu")).await.unwrap();
        let folder = format!("/sys/bus/pci/devices/{}", edu.address);
        assert_eq!(
            sh(vm, &format!("cat {folder}/vendor {folder}/device")).await,
            "0x1234\n0x11e8\n"
        );
        edu.release().await.unwrap();
        assert!(try_sh(vm, &format!("ls {folder}")).await.contains("failed"));
    }

    // A disk of a real server, written to through one mount and read from the host.
    let disk = image(place.path(), "served");
    let socket = place.path().join("disk.sock");
    let server = Server::start(&disk, &socket).await;
    let socket = socket.to_str().unwrap();
    let mounted = vm.add_vhost_user_disk(socket, "/run/mounts/s", "", false).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/s/name").await, "served");
    sh(vm, "echo written > /run/mounts/s/new; sync").await;
    // A disk in use is not pulled out, whoever asks.
    let error = vm.remove_device(&mounted.device.id).await.unwrap_err();
    assert!(chain(&error).contains("is mounted on /run/mounts/s"), "{}", chain(&error));
    assert_eq!(sh(vm, "cat /run/mounts/s/new").await, "written\n");
    mounted.release().await.unwrap();
    assert!(matches!(mounted.release().await, Err(UvmError::NoVpciDevice { .. })));
    assert_eq!(sh(vm, "ls /run/mounts").await, "");
    let mounted = vm.add_vhost_user_disk(socket, "/run/mounts/s", "ext4", true).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/s/new").await, "written\n");
    assert!(try_sh(vm, "echo x > /run/mounts/s/x").await.contains("Read-only"));
    mounted.release().await.unwrap();
    // What the guest cannot mount is taken out again.
    let error = vm.add_vhost_user_disk(socket, "/run/mounts/s", "xfs", false).await.unwrap_err();
    assert!(chain(&error).starts_with("failed to mount the served disk at /run/mounts/s"));
    assert!(vm.assigned_devices().is_empty());
    drop(server);
    let error = vm.add_vhost_user_disk(socket, "/run/mounts/s", "", false).await.unwrap_err();
    assert!(chain(&error).contains("dial"), "{}", chain(&error));
    started.close().await;
}
