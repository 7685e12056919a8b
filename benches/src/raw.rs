//! The baseline of a stream: bytes through a virtio-serial port with nothing around them.
//!
//! The same kernel and modules as coracle's guest, busybox as init, `dd` on the port in
//! the guest, plain reads and writes on its socket on the host.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_guest_image::cpio;

use crate::bare;

/// What the guest does: says a byte, sends, sends what comes out of a pipe, receives, says a byte, receives
/// into a pipe, says a byte.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for m in $($b cat /etc/coracle/modules); do $b insmod $m; done
while ! [ -e /dev/vport0p1 ]; do $b sleep 0.01; done
exec 3<>/dev/vport0p1
echo r >&3
$b dd bs=64k iflag=fullblock count=COUNT </dev/zero >&3 2>/dev/null
$b dd bs=64k count=COUNT </dev/zero 2>/dev/null | $b dd bs=64k >&3 2>/dev/null
$b dd bs=64k iflag=fullblock count=COUNT <&3 >/dev/null 2>/dev/null
echo d >&3
$b dd bs=64k iflag=fullblock count=COUNT <&3 2>/dev/null | $b cat >/dev/null
echo d >&3
$b sleep 1000
"#;

/// Bytes per second each way.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// From the guest to the host.
    pub to_host: f64,
    /// The same, through a pipe between two processes first, as a container's output goes.
    pub piped: f64,
    /// From the host to the guest.
    pub to_guest: f64,
    /// The same, through a pipe between two processes after it, as a container's input goes.
    pub into_pipe: f64,
}

/// Copies `blocks` times 64 KiB each way.
///
/// # Errors
/// The VM does not boot or the port breaks.
pub fn copy(guest: &Path, blocks: u32) -> Result<Speed> {
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("raw.img");
    std::fs::write(&initrd, initrd_with(guest, &INIT.replace("COUNT", &blocks.to_string()))?)?;
    let socket = dir.path().join("port.sock");
    let mut command = bare::qemu(&guest.join("vmlinux"), &initrd, bare::KERNEL_WORDS, 256);
    let child = command
        .args(["-device", "virtio-serial-pci", "-chardev"])
        .arg(format!("socket,id=c,path={},server=on,wait=off", socket.display()))
        .args(["-device", "virtserialport,chardev=c,name=raw"])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let speed = copy_over(&child, &socket, blocks);
    bare::stop(child)?;
    speed
}

fn copy_over(_vm: &Child, socket: &Path, blocks: u32) -> Result<Speed> {
    let mut port = connect(socket)?;
    let total = u64::from(blocks) * 65536;
    let mut buffer = vec![0; 1 << 18];
    expect(&mut port, b"r\n")?;
    let started = Instant::now();
    drain(&mut port, total, &mut buffer)?;
    let to_host = rate(total, started);
    let started = Instant::now();
    drain(&mut port, total, &mut buffer)?;
    let piped = rate(total, started);
    let [to_guest, into_pipe] = [fill(&mut port, blocks)?, fill(&mut port, blocks)?];
    Ok(Speed { to_host, piped, to_guest, into_pipe })
}

/// Bytes per second until the guest says that it has them.
fn fill(port: &mut UnixStream, blocks: u32) -> Result<f64> {
    let block = [0; 65536];
    let started = Instant::now();
    for _ in 0..blocks {
        port.write_all(&block).context("cannot write to the port")?;
    }
    expect(port, b"d\n")?;
    Ok(rate(u64::from(blocks) * 65536, started))
}

/// A connection to a socket that QEMU is about to make.
///
/// # Errors
/// It is not there within 30 s.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                return Ok(stream);
            }
            Err(error) => ensure!(Instant::now() < deadline, "no socket: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn drain(port: &mut UnixStream, total: u64, buffer: &mut [u8]) -> Result<()> {
    let mut left = total;
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = port.read(&mut buffer[..most]).context("cannot read the port")?;
        ensure!(n > 0, "the port closed");
        left -= n as u64;
    }
    Ok(())
}

fn expect(port: &mut UnixStream, wanted: &[u8; 2]) -> Result<()> {
    let mut said = [0; 2];
    port.read_exact(&mut said).context("the guest says nothing")?;
    ensure!(&said == wanted, "the guest says {said:?}");
    Ok(())
}

/// Bytes per second since `started`.
pub fn rate(bytes: u64, started: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
    let bytes = bytes as f64;
    bytes / started.elapsed().as_secs_f64()
}

/// The guest's own initrd, with another init and a busybox laid over it.
pub fn initrd_with(guest: &Path, init: &str) -> Result<Vec<u8>> {
    initrd_with_files(guest, init, &[])
}

/// The same, with further programs: where in the guest, and their bytes. Their folders are made.
pub fn initrd_with_files(
    guest: &Path,
    init: &str,
    files: &[(PathBuf, Vec<u8>)],
) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(guest.join("initrd.img"))?;
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let busybox = std::fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut over = cpio::Archive::default();
    over.add("bin", 0o755, cpio::Kind::Directory);
    over.add("bin/busybox", 0o755, cpio::Kind::File(&busybox));
    over.add("init", 0o755, cpio::Kind::File(init.as_bytes()));
    let mut folders = BTreeSet::new();
    for (path, _) in files {
        folders.extend(path.ancestors().skip(1).filter(|path| path.file_name().is_some()));
    }
    for folder in folders {
        over.add(&folder.to_string_lossy(), 0o755, cpio::Kind::Directory);
    }
    for (path, bytes) in files {
        over.add(&path.to_string_lossy(), 0o755, cpio::Kind::File(bytes));
    }
    bytes.extend(over.finish());
    Ok(bytes)
}
