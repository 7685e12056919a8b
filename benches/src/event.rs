//! The baseline of a removal: from a device's removal to QEMU's word that it is gone, in a bare VM.
//!
//! The same kernel and modules as coracle's guest, busybox as init, one PCI device behind a bridge, and
//! nothing but QMP: what unplugging costs with nobody in between.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::table::Samples;
use crate::{bare, raw};

/// What the guest does: loads the modules, says a byte, waits.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for m in $($b cat /etc/coracle/modules); do $b insmod $m; done
while ! [ -e /dev/vport0p1 ]; do $b sleep 0.01; done
echo r > /dev/vport0p1
$b sleep 1000
"#;

const ROUNDS: usize = 15;
/// How long the guest has to take a new device in before it is taken away.
const SETTLE: Duration = Duration::from_millis(300);

/// From `device_del` to `DEVICE_DELETED`.
///
/// # Errors
/// The VM does not boot, QEMU refuses, an event does not come.
pub fn measure(guest: &Path) -> Result<Samples> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("initrd"), raw::initrd_with(guest, INIT)?)?;
    let socket = |name: &str| format!("path={},server=on,wait=off", at(name).display());
    let child = bare::qemu(&guest.join("vmlinux"), &at("initrd"), bare::KERNEL_WORDS, 256)
        .args(["-device", "virtio-serial-pci", "-chardev"])
        .arg(format!("socket,id=c,{}", socket("port")))
        .args(["-device", "virtserialport,chardev=c,name=raw"])
        .args(["-device", "pcie-pci-bridge,id=hot", "-chardev"])
        .arg(format!("socket,id=m,{}", socket("qmp")))
        .args(["-mon", "chardev=m,mode=control"])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let samples = rounds(&at("port"), &at("qmp"));
    bare::stop(child)?;
    samples
}

fn rounds(port: &Path, qmp: &Path) -> Result<Samples> {
    let mut port = raw::connect(port)?;
    let mut byte = [0];
    port.read_exact(&mut byte).context("the guest says nothing")?;
    let mut monitor = Monitor::new(raw::connect(qmp)?)?;
    let mut samples = Samples::default();
    for _ in 0..ROUNDS {
        let device = json!({"driver": "virtio-rng-pci", "id": "d", "bus": "hot", "addr": "1"});
        monitor.run("device_add", &device)?;
        std::thread::sleep(SETTLE);
        let began = Instant::now();
        monitor.run("device_del", &json!({"id": "d"}))?;
        monitor.wait(|line| line["event"] == "DEVICE_DELETED" && line["data"]["device"] == "d")?;
        samples.add(began.elapsed());
    }
    Ok(samples)
}

/// QEMU's control socket, a line at a time.
struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn new(stream: UnixStream) -> Result<Self> {
        let mut monitor = Self { lines: BufReader::new(stream) };
        monitor.run("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn run(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let line = json!({"execute": command, "arguments": arguments, "id": command});
        writeln!(self.lines.get_mut(), "{line}").context("cannot write to QEMU")?;
        let answer = self.wait(|line| line["id"] == command)?;
        ensure!(answer.get("return").is_some(), "{command}: {answer}");
        Ok(())
    }

    fn wait(&mut self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).context("QEMU says nothing")? == 0 {
                bail!("QEMU closed its control socket");
            }
            let line: Value = serde_json::from_str(&line).context("QEMU says no JSON")?;
            if is_it(&line) {
                return Ok(line);
            }
        }
    }
}
