//! What is plugged into a VM that runs: how long until the guest sees it, how long until it is gone,
//! how fast a share is read, and what a thousand rounds leave in our memory.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use coracle_uvm::UtilityVm;
use coracle_uvm::container::Process;
use coracle_uvm::scsi::VmAccessType;
use tokio::io::AsyncReadExt;

use crate::live::{Live, in_vm};
use crate::table::{Budget, Row, Samples};

const ROUNDS: usize = 31;
/// Rounds whose memory is looked at.
const MANY: u32 = 1000;

/// All of it, in one VM.
///
/// # Errors
/// The VM does not boot, something cannot be plugged in.
pub async fn measure(coracle: &Path, guest: &Path) -> Result<Vec<Row>> {
    let live = Live::boot(coracle, guest).await?;
    let vm = &live.vm;
    let place = tempfile::tempdir()?;
    let ping = pings(vm).await?;
    eprintln!("plugs: an agent ping takes {ping:.2} ms");
    let at = guest.to_owned();
    let event = tokio::task::spawn_blocking(move || crate::event::measure(&at)).await??.median();
    eprintln!("plugs: QEMU's own word of a removal takes {event:.1} ms");
    let mut rows = latencies(vm, place.path(), Beside { ping, event }).await?;
    eprintln!("plugs: latencies");
    rows.push(many_disks(vm, place.path()).await?);
    rows.extend(reads(vm, place.path(), guest).await?);
    eprintln!("plugs: reads");
    rows.push(crate::pipe::measure(vm, place.path(), guest).await?);
    eprintln!("plugs: a pipe");
    rows.push(growth(vm, place.path()).await?);
    live.vm.close().await?;
    Ok(rows)
}

/// The median of a request that does next to nothing, in milliseconds.
async fn pings(vm: &UtilityVm) -> Result<f64> {
    let sleeper = vm.create_process(&in_vm("sleep 1000")).await?;
    let mut samples = Samples::default();
    for _ in 0..200 {
        let asked = Instant::now();
        ensure!(sleeper.signal(Some(28)).await?, "the signal was not delivered");
        samples.add(asked.elapsed());
    }
    sleeper.kill().await?;
    sleeper.wait().await?;
    Ok(samples.median())
}

fn disk(place: &Path, name: &str, mib: u64) -> Result<String> {
    let path = place.join(name);
    File::create(&path)?.set_len(mib << 20)?;
    Ok(path.to_str().context("a path is no text")?.to_owned())
}

/// What the same machine takes for less, in milliseconds.
#[derive(Clone, Copy)]
struct Beside {
    /// A request that does next to nothing.
    ping: f64,
    /// From `device_del` to `DEVICE_DELETED` in a bare VM.
    event: f64,
}

async fn latencies(vm: &UtilityVm, place: &Path, beside: Beside) -> Result<Vec<Row>> {
    let path = disk(place, "disk", 1)?;
    let shared = place.join("shared");
    std::fs::create_dir(&shared)?;
    let shared = shared.to_str().context("a path is no text")?;
    let socket = place.join("socket");
    let _server = UnixListener::bind(&socket)?;
    let socket = socket.to_str().context("a path is no text")?;
    let [mut scsi, mut fast, mut nine, mut pipe] = [(); 4].map(|()| Pair::default());
    for _ in 0..ROUNDS {
        let mount = scsi.add(vm.add_scsi(&path, "", false, VmAccessType::Noop)).await?;
        scsi.remove(mount.release()).await?;
        let share = fast.add(vm.add_virtiofs(shared, "/run/mounts/v", false)).await?;
        fast.remove(share.release()).await?;
        let share = nine.add(vm.add_plan9(shared, "/run/mounts/9", false, false, &[])).await?;
        nine.remove(share.release()).await?;
        let there = pipe.add(vm.add_pipe(socket)).await?;
        pipe.remove(there.release()).await?;
    }
    let kinds = [
        ("SCSI disk", scsi, 60.0),
        ("virtio-fs", fast, 120.0),
        ("9P", nine, 150.0),
        ("pipe", pipe, 20.0),
    ];
    let row = |what: String, samples: &Samples, most| Row {
        what,
        value: samples.median(),
        unit: "ms",
        budget: Budget::AtMost(most),
        detail: format!(
            "p99 {:.1} ms; an agent ping {:.2} ms, a bare PCI device's removal {:.1} ms",
            samples.quantile(0.99),
            beside.ping,
            beside.event
        ),
    };
    Ok(kinds
        .iter()
        .flat_map(|(kind, pair, most)| {
            [
                row(format!("{kind}: add to visible, p50"), &pair.added, *most),
                row(format!("{kind}: remove, p50"), &pair.removed, 150.0),
            ]
        })
        .collect())
}

/// How long adding and removing took.
#[derive(Default)]
struct Pair {
    added: Samples,
    removed: Samples,
}

impl Pair {
    async fn add<T, E>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let done = work.await?;
        self.added.add(began.elapsed());
        Ok(done)
    }

    async fn remove<E>(&mut self, work: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let began = Instant::now();
        work.await?;
        self.removed.add(began.elapsed());
        Ok(())
    }
}

async fn many_disks(vm: &UtilityVm, place: &Path) -> Result<Row> {
    let paths = (0..64).map(|n| disk(place, &format!("many{n}"), 1)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let mut adds = tokio::task::JoinSet::new();
    for path in &paths {
        let (vm, path) = (vm.clone(), path.clone());
        adds.spawn(async move { vm.add_scsi(&path, "", false, VmAccessType::Noop).await });
    }
    let mut mounts = Vec::new();
    while let Some(added) = adds.join_next().await {
        mounts.push(added??);
    }
    let took = began.elapsed();
    for mount in mounts {
        mount.release().await?;
    }
    Ok(Row {
        what: "64 disks in, at once".to_owned(),
        value: took.as_secs_f64(),
        unit: "s",
        budget: Budget::AtMost(3.0),
        detail: String::new(),
    })
}

/// 200 MB read from either kind of share, what the guest remembers dropped before.
async fn reads(vm: &UtilityVm, place: &Path, guest: &Path) -> Result<Vec<Row>> {
    const BYTES: u64 = 200 << 20;
    let shared = place.join("shared");
    std::fs::write(shared.join("big"), vec![7; usize::try_from(BYTES)?])?;
    let host = shared.to_str().context("a path is no text")?;
    let fast = vm.add_virtiofs(host, "/run/mounts/v", true).await?;
    let nine = vm.add_plan9(host, "/run/mounts/9", true, false, &[]).await?;
    let mut rows = Vec::new();
    for (kind, at, least) in [
        ("virtio-fs", "/run/mounts/v", Budget::None),
        ("9P", "/run/mounts/9", Budget::AtLeast(30.0)),
    ] {
        let mut rates = Vec::new();
        for _ in 0..3 {
            let script =
                format!("echo 3 > /proc/sys/vm/drop_caches; cat {at}/big > /dev/null; echo done");
            let began = Instant::now();
            let process = vm.create_process(&in_vm(&script)).await?;
            ensure!(output(&process).await? == "done\n", "the file was not read");
            rates.push(crate::raw::rate(BYTES, began));
        }
        rates.sort_by(f64::total_cmp);
        rows.push(Row {
            what: format!("{kind}: 200 MB read"),
            value: rates[1] / 1e6,
            unit: "MB/s",
            budget: least,
            detail: String::new(),
        });
    }
    let (at, folder) = (guest.to_owned(), shared.clone());
    let bare = tokio::task::spawn_blocking(move || crate::shared::read(&at, &folder, BYTES, 3));
    let (bare, ours) = (bare.await??, rows[0].value * 1e6);
    rows.push(Row {
        what: "virtio-fs read vs. a bare virtiofsd".to_owned(),
        value: ours / bare,
        unit: "x",
        budget: Budget::AtLeast(0.8),
        detail: format!("{:.0} MB/s against {:.0} MB/s", ours / 1e6, bare / 1e6),
    });
    fast.release().await?;
    nine.release().await?;
    Ok(rows)
}

async fn output(process: &Process) -> Result<String> {
    let mut text = String::new();
    let mut stdout = process.take_stdio().stdout.context("no stdout")?;
    stdout.read_to_string(&mut text).await?;
    process.wait().await?;
    Ok(text)
}

/// What adding and removing again and again leaves in our memory.
async fn growth(vm: &UtilityVm, place: &Path) -> Result<Row> {
    let path = disk(place, "again", 1)?;
    let shared = place.join("shared");
    let shared = shared.to_str().context("a path is no text")?;
    let mut before = 0;
    for round in 0..MANY {
        let mount = vm.add_scsi(&path, "", false, VmAccessType::Noop).await?;
        mount.release().await?;
        let share = vm.add_plan9(shared, "/run/mounts/9", true, false, &[]).await?;
        share.release().await?;
        // The first rounds fill pools that stay.
        if round == MANY / 10 {
            before = anonymous()?;
        }
    }
    let after = anonymous()?;
    #[expect(clippy::cast_precision_loss)]
    let grown = after.saturating_sub(before) as f64 / 1024.0;
    Ok(Row {
        what: format!("memory after {MANY} rounds of adds and removes"),
        value: grown,
        unit: "MiB",
        budget: Budget::AtMost(1.0),
        detail: format!("{after} KiB against {before} KiB after the first tenth"),
    })
}

/// Our anonymous memory in KiB.
fn anonymous() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no RssAnon")?;
    Ok(number.parse()?)
}
