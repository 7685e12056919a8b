//! The baseline of a virtio-fs share: the same virtiofsd under a bare QEMU, read by busybox.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{bare, raw};

/// What the guest does: mounts, says a byte, reads when told, says a byte.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /mnt /dev
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for m in $($b cat /etc/coracle/modules); do $b insmod $m; done
for m in fuse virtiofs; do $b insmod $($b find / -xdev -name $m.ko); done
# The share is the first virtio device, the port the second.
while ! [ -e /dev/vport1p1 ]; do $b sleep 0.01; done
exec 3<>/dev/vport1p1
$b mount -t virtiofs bare /mnt
echo r >&3
while read -r line <&3; do
    echo 3 > /proc/sys/vm/drop_caches
    $b cat /mnt/big > /dev/null && echo d >&3
done
"#;

/// Reads `big` of `folder` in a bare VM as often as asked, and gives the middle of the rates in bytes
/// per second.
///
/// # Errors
/// A process cannot be started, the VM does not boot, the file is not read.
pub fn read(guest: &Path, folder: &Path, bytes: u64, times: usize) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let program = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd"];
    let program = program.iter().find(|path| Path::new(path).exists());
    let mut server = Command::new(program.context("virtiofsd is not installed")?)
        .arg(format!("--socket-path={}", at("fs.sock").display()))
        .arg("-o")
        .arg(format!("source={}", folder.display()))
        .args(["-o", "cache=auto"])
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start virtiofsd")?;
    let rates = (|| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !at("fs.sock").exists() {
            ensure!(Instant::now() < deadline, "virtiofsd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::write(at("initrd"), raw::initrd_with(guest, INIT)?)?;
        let words = bare::KERNEL_WORDS;
        let vm = bare::qemu(&guest.join("vmlinux"), &at("initrd"), words, 512)
            .args(["-object", "memory-backend-memfd,id=m,size=512M,share=on"])
            .args(["-machine", "memory-backend=m", "-chardev"])
            .arg(format!("socket,id=f,path={}", at("fs.sock").display()))
            .args(["-device", "vhost-user-fs-pci,chardev=f,tag=bare", "-device"])
            .args(["virtio-serial-pci", "-chardev"])
            .arg(format!("socket,id=c,path={},server=on,wait=off", at("port").display()))
            .args(["-device", "virtserialport,chardev=c,name=raw"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let rates = rates(&at("port"), bytes, times);
        bare::stop(vm)?;
        rates
    })();
    // It ends with its VM.
    let _ = server.kill();
    server.wait()?;
    let mut rates = rates?;
    rates.sort_by(f64::total_cmp);
    rates.get(times / 2).copied().context("nothing was measured")
}

fn rates(port: &Path, bytes: u64, times: usize) -> Result<Vec<f64>> {
    let mut port = raw::connect(port)?;
    let mut said = [0; 2];
    port.read_exact(&mut said).context("the guest does not mount the share")?;
    (0..times)
        .map(|_| {
            let began = Instant::now();
            port.write_all(b"go\n")?;
            port.read_exact(&mut said).context("the guest does not read the file")?;
            Ok(raw::rate(bytes, began))
        })
        .collect()
}
