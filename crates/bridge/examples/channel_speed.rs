//! How fast the channel is over a real QEMU, next to a bare copy through the same ports.
//!
//! `cargo run --release -p coracle-bridge --example channel_speed` prints MB/s and microseconds. The
//! program is also /init of the VM, as in the tests whose parts it uses.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub
)]

#[path = "../tests/channel_common/flow.rs"]
#[allow(dead_code)]
mod flow;
#[path = "../tests/channel_common/guest.rs"]
mod guest;
#[path = "../tests/channel_common/vm.rs"]
mod vm;

use coracle_bridge::channel::{ChannelDir, PortDevice, STREAMS_PORT, VirtioPort, keeper};
use coracle_bridge::port;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ROUNDS: usize = 5;
const BYTES: usize = 64 << 20;
const PINGS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    if std::process::id() == 1 {
        // The kernel hands on the words of its command line that it does not know.
        if std::env::args().any(|word| word == "bare") {
            guest::prepare();
            serve_bare();
        }
        guest::main();
    }
    if std::env::args().nth(1).as_deref() == Some("play-keeper") {
        let dir = std::env::args().nth(2).expect("a folder");
        let config = keeper::Keeper::new(ChannelDir::new(dir));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(3).build().unwrap();
        runtime.block_on(keeper::run(config, std::future::pending())).unwrap();
        return;
    }
    if std::env::args().nth(1).as_deref() != Some("channel") {
        bare();
    }
    channel();
}

/// In the guest: 'r' sends BYTES, 'w' takes BYTES and answers one byte, 'p' echoes 64 bytes.
fn serve_bare() -> ! {
    let mut port = VirtioPort::new(STREAMS_PORT);
    let fd = loop {
        match port.open() {
            Ok(fd) => break fd,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    rustix::io::ioctl_fionbio(&fd, false).unwrap();
    let mut port = std::fs::File::from(fd);
    let mut buffer = vec![7; 64 * 1024];
    loop {
        let mut order = [0];
        if port.read(&mut order).unwrap() == 0 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        match order[0] {
            b'r' => {
                for _ in 0..BYTES / buffer.len() {
                    port.write_all(&buffer).unwrap();
                }
            }
            b'w' => {
                let mut left = BYTES;
                while left > 0 {
                    left -= port.read(&mut buffer[..left.min(64 * 1024)]).unwrap();
                }
                port.write_all(b"k").unwrap();
            }
            _ => port.write_all(&[0; 64]).unwrap(),
        }
    }
}

fn rate(begun: Instant) -> f64 {
    BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

fn report(what: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    println!("{what:<28} median {:>8.1}  min {:>8.1}  p99 {:>8.1}", at(0.5), at(0.0), at(0.99));
}

fn bare() {
    let vm = vm::Vm::start("bare");
    let path = vm.folder.path().join("streams.sock");
    let mut port = loop {
        match StdUnixStream::connect(&path) {
            Ok(port) => break port,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut buffer = vec![1; 64 * 1024];
    port.write_all(b"p").unwrap();
    port.read_exact(&mut buffer[..64]).unwrap();
    let (mut up, mut down, mut ping) = (vec![], vec![], vec![]);
    let mut cost = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let cpu = vm.cpu_seconds();
        let begun = Instant::now();
        port.write_all(b"r").unwrap();
        let mut left = BYTES;
        while left > 0 {
            left -= port.read(&mut buffer).unwrap();
        }
        up.push(rate(begun));
        cost.0.push((vm.cpu_seconds() - cpu) * 1e3);
        let cpu = vm.cpu_seconds();
        let begun = Instant::now();
        port.write_all(b"w").unwrap();
        for _ in 0..BYTES / buffer.len() {
            port.write_all(&buffer).unwrap();
        }
        port.read_exact(&mut buffer[..1]).unwrap();
        down.push(rate(begun));
        cost.1.push((vm.cpu_seconds() - cpu) * 1e3);
    }
    for _ in 0..PINGS {
        let begun = Instant::now();
        port.write_all(b"p").unwrap();
        port.read_exact(&mut buffer[..64]).unwrap();
        ping.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    report("bare guest->host MB/s", up);
    report("bare host->guest MB/s", down);
    report("bare ping us", ping);
    report("QEMU ms CPU guest->host", cost.0);
    report("QEMU ms CPU host->guest", cost.1);
}

fn channel() {
    let vm = vm::Vm::start("");
    let dir = ChannelDir::new(vm.folder.path());
    let mut keeper = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["play-keeper", dir.path().to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(3).build().unwrap();
    runtime.block_on(measure(&dir, &vm, keeper.id())).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", keeper.id())).unwrap();
    for line in status.lines().filter(|l| l.starts_with("RssAnon") || l.starts_with("VmHWM")) {
        println!("keeper {line}");
    }
    keeper.kill().unwrap();
    keeper.wait().unwrap();
}

async fn measure(dir: &ChannelDir, vm: &vm::Vm, keeper: u32) -> io::Result<()> {
    coracle_bridge::channel::keeper::wait_ready(dir, PATIENCE).await.map_err(io::Error::other)?;
    let mut bridge = dir.dial_within(port::BRIDGE, PATIENCE).await.map_err(io::Error::other)?;
    let mut buffer = vec![1; 64 * 1024];
    let (mut up, mut down) = (vec![], vec![]);
    let mut cost = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let cpu = (vm.cpu_seconds(), vm::cpu_seconds(keeper));
        let mut flood = dir.dial_within(guest::POUR, PATIENCE).await.map_err(io::Error::other)?;
        let begun = Instant::now();
        let mut left = BYTES;
        while left > 0 {
            left = left.saturating_sub(flood.read(&mut buffer).await?);
        }
        up.push(rate(begun));
        drop(flood);
        cost.0.push((vm.cpu_seconds() - cpu.0) * 1e3);
        cost.1.push((vm::cpu_seconds(keeper) - cpu.1) * 1e3);
        let cpu = (vm.cpu_seconds(), vm::cpu_seconds(keeper));
        let mut sink = dir.dial_within(guest::DRAIN, PATIENCE).await.map_err(io::Error::other)?;
        let begun = Instant::now();
        for _ in 0..BYTES / buffer.len() {
            sink.write_all(&buffer).await?;
        }
        sink.shutdown().await?;
        sink.read_to_end(&mut Vec::new()).await?;
        down.push(rate(begun));
        cost.2.push((vm.cpu_seconds() - cpu.0) * 1e3);
        cost.3.push((vm::cpu_seconds(keeper) - cpu.1) * 1e3);
    }
    let idle = pings(&mut bridge).await?;
    let mut flood = dir.dial_within(guest::POUR, PATIENCE).await.map_err(io::Error::other)?;
    let reader = tokio::spawn(async move {
        let mut buffer = vec![1; 64 * 1024];
        while flood.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    let flooded = pings(&mut bridge).await?;
    reader.abort();
    report("stream guest->host MB/s", up);
    report("stream host->guest MB/s", down);
    report("QEMU ms CPU guest->host", cost.0);
    report("keeper ms CPU guest->host", cost.1);
    report("QEMU ms CPU host->guest", cost.2);
    report("keeper ms CPU host->guest", cost.3);
    report("bridge ping idle us", idle);
    report("bridge ping in a flood us", flooded);
    Ok(())
}

async fn pings<S>(bridge: &mut S) -> io::Result<Vec<f64>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = [0; 64];
    let mut times = vec![];
    for _ in 0..PINGS {
        let begun = Instant::now();
        bridge.write_all(&buffer).await?;
        bridge.read_exact(&mut buffer).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
