//! A sandbox's private network beside a hand-made one: a bare QEMU on a tap that `tc` mirrors to a veth,
//! both in namespaces of our own, measured in turns by iperf3 and ping from the host.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::table::{Budget, Row, Samples};
use crate::{bare, boot, raw};

const ROUNDS: usize = 9;

/// What the bare guest does: brings its card up, and serves iperf3.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /tmp /dev
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
for m in $($b cat /etc/coracle/modules); do $b insmod $m; done
for m in failover net_failover virtio_net; do $b insmod $($b find / -xdev -name $m.ko); done
$b ip link set lo up
$b ip addr add 10.9.0.2/24 dev eth0
$b ip link set eth0 up
/usr/bin/iperf3 -s
$b sleep 1000
"#;

/// All of it.
///
/// # Errors
/// Not root; iperf3 is not there; a VM does not boot or does not answer.
pub fn measure(coracle: &Path, guest: &Path) -> Result<Vec<Row>> {
    let tools = tools()?;
    let dir = tempfile::tempdir()?;
    let ours = Ours::start(coracle, guest, dir.path(), &tools)?;
    let bare = Bare::start(guest, dir.path(), &tools)?;
    let (mut to_guest, mut to_host, mut there) =
        (Pair::default(), Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for (side, place, address) in [(0, &ours.place, "10.89.0.2"), (1, &bare.place, "10.9.0.2")]
        {
            to_guest.add(side, throughput(place, address, &[])?);
            to_host.add(side, throughput(place, address, &["-R"])?);
            there.add(side, round_trip(place, address)?);
        }
    }
    eprintln!("network: throughput and round trips");
    let mut rows = vec![
        to_guest.row("network, host to guest / by hand", "Mbit/s", Budget::AtLeast(0.8)),
        to_host.row("network, guest to host / by hand", "Mbit/s", Budget::AtLeast(0.8)),
        there.row("network, round trip / by hand", "ms", Budget::AtMost(1.3)),
    ];
    drop(bare);
    rows.push(ours.added()?);
    rows.extend(ours.set_up()?);
    Ok(rows)
}

/// iperf3 and what it needs to run, by where it is.
fn tools() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    const IPERF: &str = "/usr/bin/iperf3";
    ensure!(Path::new(IPERF).exists(), "iperf3 is not installed (`make setup` brings it)");
    let told = Command::new("ldd").arg(IPERF).output().context("cannot run ldd")?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let libraries = told.split_whitespace().filter(|word| word.starts_with('/'));
    std::iter::once(IPERF)
        .chain(libraries)
        .map(|path| {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
            Ok((PathBuf::from(path.trim_start_matches('/')), bytes))
        })
        .collect()
}

/// A network namespace of our own.
struct Place(PathBuf);

impl Place {
    fn make(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        std::fs::write(&path, "")?;
        let at = format!("--net={}", path.display());
        run(Command::new("unshare").args([at.as_str(), "true"]))?;
        let place = Self(path);
        place.sh("ip link set lo up")?;
        Ok(place)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.0.display())).arg(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        command
    }

    fn sh(&self, command: &str) -> Result<Output> {
        run(self.command("sh").args(["-c", command]))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A mount that stays is told by the folder that cannot be removed.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().context("cannot start a program")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(output)
}

/// A sandbox of ours.
struct Ours {
    place: Place,
    coracle: PathBuf,
    root: PathBuf,
}

impl Ours {
    fn start(
        coracle: &Path,
        guest: &Path,
        dir: &Path,
        tools: &[(PathBuf, Vec<u8>)],
    ) -> Result<Self> {
        let (root, files) = (dir.join("root"), dir.join("rootfs"));
        std::fs::create_dir(&root)?;
        std::os::unix::fs::symlink(guest, root.join("guest"))?;
        for (path, bytes) in tools {
            let path = files.join(path);
            std::fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
            std::fs::write(&path, bytes)?;
            run(Command::new("chmod").arg("755").arg(&path))?;
        }
        for folder in ["proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(files.join(folder))?;
        }
        let place = Place::make(dir, "ours")?;
        let ours = Self { place, coracle: coracle.to_owned(), root };
        let files = files.to_string_lossy().into_owned();
        ours.coracle(&["run", "-d", "--name", "bench", &files, "/usr/bin/iperf3", "-s"])?;
        Ok(ours)
    }

    fn coracle(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.place.command(&self.coracle.to_string_lossy());
        command.args(words).env("CORACLE_ROOT", &self.root).env("CORACLE_ACCEL", "tcg");
        run(&mut command)
    }

    /// From the request for one more network to an answered ping on it.
    fn added(&self) -> Result<Row> {
        let mut samples = Samples::default();
        for n in 0..ROUNDS {
            let name = format!("more{n}");
            let began = Instant::now();
            let told = self.coracle(&["net", "add", "bench", &name])?;
            let address = String::from_utf8(told.stdout)?;
            wait_for(&self.place, address.trim())?;
            samples.add(began.elapsed());
            self.coracle(&["net", "rm", "bench", &name])?;
        }
        Ok(Row {
            what: "endpoint added to an answered ping, p50".to_owned(),
            value: samples.median(),
            unit: "ms",
            budget: Budget::AtMost(150.0),
            detail: format!("by the command line; slowest {:.0} ms", samples.quantile(1.0)),
        })
    }

    /// What a network adds to a whole `coracle run`; and to the rest of it, without the guest's boot, which
    /// differs by more than that from one run to the next.
    fn set_up(&self) -> Result<[Row; 2]> {
        let mut runs = [Samples::default(), Samples::default()];
        let mut rests = [Samples::default(), Samples::default()];
        for _ in 0..ROUNDS {
            for (at, net) in ["none", "default"].into_iter().enumerate() {
                let began = Instant::now();
                let out = self.coracle(&[
                    "run",
                    "--net",
                    net,
                    "--timeline",
                    "--format",
                    "json",
                    "--",
                    "true",
                ])?;
                let took = began.elapsed();
                let ended = boot::timeline(&String::from_utf8_lossy(&out.stderr))?;
                let of = |phase| ended.get(phase).with_context(|| format!("no phase {phase:?}"));
                let boot = (of("firmware+kernel")? - of("spawn")?) / 1000.0;
                runs[at].add(took);
                rests[at].add(took.saturating_sub(Duration::from_secs_f64(boot)));
            }
        }
        let row = |what: &str, [without, with]: [Samples; 2], budget| Row {
            what: what.to_owned(),
            value: with.median() - without.median(),
            unit: "ms",
            budget,
            detail: format!("{:.0} ms with, {:.0} ms without", with.median(), without.median()),
        };
        Ok([
            row("network set up and taken down in a run", runs, Budget::AtMost(60.0)),
            row("the same, but for the kernel's boot", rests, Budget::None),
        ])
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Err(error) = self.coracle(&["rm", "--force", "bench"]) {
            eprintln!("network: {error:#}");
        }
    }
}

/// A bare QEMU on a tap that is mirrored to a veth.
struct Bare {
    place: Place,
    vm: Child,
}

impl Bare {
    fn start(guest: &Path, dir: &Path, tools: &[(PathBuf, Vec<u8>)]) -> Result<Self> {
        let place = Place::make(dir, "bare")?;
        place.sh(
            "ip link add far type veth peer name near && ip addr add 10.9.0.1/24 dev far && \
             ip link set far up && ip link set near up && ip tuntap add tap0 mode tap vnet_hdr && \
             ip link set tap0 up && \
             for pair in 'near tap0' 'tap0 near'; do set -- $pair; \
             tc qdisc add dev $1 ingress && tc filter add dev $1 parent ffff: protocol all u32 \
             match u8 0 0 action mirred egress redirect dev $2; done",
        )?;
        let initrd = dir.join("bare.img");
        std::fs::write(&initrd, raw::initrd_with_files(guest, INIT, tools)?)?;
        let qemu = bare::qemu(&guest.join("vmlinux"), &initrd, bare::KERNEL_WORDS, 1024);
        let vm = place
            .command("qemu-system-x86_64")
            .args(qemu.get_args())
            .args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"])
            .args(["-device", "virtio-net-pci,netdev=n,mac=02:00:00:00:00:02"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let bare = Self { place, vm };
        wait_for(&bare.place, "10.9.0.2")?;
        Ok(bare)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.vm.kill();
        let _ = self.vm.wait();
    }
}

fn wait_for(place: &Place, address: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.sh(&format!("ping -c1 -W1 -i0.01 {address}")).is_err() {
        ensure!(Instant::now() < deadline, "{address} does not answer");
    }
    Ok(())
}

/// Megabits a second over TCP, for a second.
fn throughput(place: &Place, address: &str, more: &[&str]) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // It would wait for ever for a VM whose network stands still.
        let mut command = place.command("timeout");
        let told = command.args(["15", "iperf3", "-c", address, "-t", "1", "-J"]).args(more);
        let told = told.stdin(Stdio::null()).output().context("cannot start iperf3")?;
        let told: Value = serde_json::from_slice(&told.stdout)
            .with_context(|| format!("iperf3 gets no answer of {address}"))?;
        if let Some(bits) = told["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok(bits / 1e6);
        }
        // Its server may not listen yet, or still be at the last one.
        ensure!(Instant::now() < deadline, "iperf3 measures nothing: {}", told["error"]);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The mean of twenty round trips, in milliseconds.
fn round_trip(place: &Place, address: &str) -> Result<f64> {
    let told = place.sh(&format!("ping -q -c20 -i0.02 {address}"))?;
    let told = String::from_utf8(told.stdout)?;
    let mean = told.rsplit_once("= ").and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    mean.with_context(|| format!("ping says {told}"))
}

/// Ours and the baseline's, in turns.
#[derive(Default)]
struct Pair([Vec<f64>; 2]);

impl Pair {
    fn add(&mut self, side: usize, value: f64) {
        self.0[side].push(value);
    }

    fn row(mut self, what: &str, unit: &str, budget: Budget) -> Row {
        let [ours, bare] = self.0.each_mut().map(|values| {
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        });
        Row {
            what: what.to_owned(),
            value: ours / bare,
            unit: "x",
            budget,
            detail: format!("{ours:.1} / {bare:.1} {unit}"),
        }
    }
}
