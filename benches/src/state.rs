//! States on a disk and in memory: a full save, a save after one container changed, a load, a lock.
//!
//! The yardsticks are taken in turns with what they measure: the same documents written by serde_json
//! over the same files, as Kata's driver does, and one append with fdatasync of as many bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coracle_persist::codec::{Tolerance, encode_container, encode_sandbox};
use coracle_persist::driver::{By, FsDriver, PersistDriver, Whole, read_sandbox_dir};
use coracle_persist::lock::Ask;
use coracle_persist::model::{ContainerState, SandboxState};
use coracle_persist::root::Root;
use coracle_persist::store::Disk;

use crate::table::{Budget, Row, Samples};

const OPERATIONS: usize = 2000;
/// No series takes longer than this.
const LONGEST: Duration = Duration::from_secs(12);

/// What Kata's driver needs for the same, in µs, without any fsync: p50 and p99 of a save and of a
/// load, on tmpfs and on ext4, as measured with its own code on a machine of this kind.
struct Kata {
    tmpfs: [(u32, u32); 2],
    disk: [(u32, u32); 2],
}

struct Size {
    name: &'static str,
    containers: usize,
    devices: usize,
    kata: Kata,
}

const SIZES: [Size; 3] = [
    Size {
        name: "small",
        containers: 1,
        devices: 1,
        kata: Kata { tmpfs: [(42, 107), (81, 315)], disk: [(223, 316), (79, 249)] },
    },
    Size {
        name: "realistic",
        containers: 5,
        devices: 8,
        kata: Kata { tmpfs: [(107, 248), (210, 537)], disk: [(602, 883), (201, 527)] },
    },
    Size {
        name: "large",
        containers: 200,
        devices: 400,
        kata: Kata { tmpfs: [(3985, 19108), (9219, 49754)], disk: [(19580, 39058), (7379, 17424)] },
    },
];

/// All sizes in both places. The series go to stderr, the budgets to the table.
///
/// # Errors
/// A state cannot be saved or read.
pub fn measure() -> Result<Vec<Row>> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let mut rows = Vec::new();
    for size in &SIZES {
        for (place, dir) in [("tmpfs", Path::new("/dev/shm")), ("disk", &target)] {
            let dir = tempfile::tempdir_in(dir)?;
            let state = state(size)?;
            let series = Series::take(&state, dir.path())?;
            series.tell(size, place);
            if size.name == "large" {
                rows.extend(series.rows(place));
            }
        }
    }
    Ok(rows)
}

/// A state like the one that Kata wrote for five containers, with more or less of each.
fn state(size: &Size) -> Result<Whole> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/persist/realistic/sb-realistic");
    let mut whole = read_sandbox_dir(&golden, Tolerance::Strict)?.whole;
    let containers: Vec<ContainerState> = whole.containers.into_values().collect();
    whole.containers = (0..size.containers)
        .map(|n| (format!("{n:064x}"), containers[n % containers.len()].clone()))
        .collect();
    let devices = whole.sandbox.devices.take().context("devices")?;
    whole.sandbox.devices =
        Some((0..size.devices).map(|n| devices[n % devices.len()].clone()).collect());
    Ok(whole)
}

#[derive(Default)]
struct Series {
    bytes: usize,
    full: Samples,
    full_synced: Samples,
    one: Samples,
    one_synced: Samples,
    /// As above, but all is shown and the driver finds out that only one has changed.
    found: Samples,
    load: Samples,
    lock: Samples,
    /// serde_json to bytes and write, file by file.
    plain_save: Samples,
    /// serde_json from bytes.
    plain_load: Samples,
    /// Append and fdatasync of as many bytes as all, and as one container.
    append_all: Samples,
    append_one: Samples,
}

fn time<T>(samples: &mut Samples, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let done = work()?;
    samples.add(began.elapsed());
    Ok(done)
}

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create())
}

impl Series {
    fn take(state: &Whole, dir: &Path) -> Result<Self> {
        let mut series = Self::default();
        let mut state = state.clone();
        let id = state.sandbox.sandbox_container.clone();
        let driver =
            |name: &str, disk| FsDriver::with_disk("fs", Root::at(dir.join(name)), Arc::new(disk));
        let mut synced = driver("synced", Disk::default());
        let mut careless = driver("careless", Disk::careless());
        let mut plain = Plain::new(&dir.join("plain"), &state)?;
        series.bytes = plain.bytes();
        let name = state.containers.keys().next().context("no container")?.clone();
        let one = encode_container(&state.containers[&name])?.len();
        let (all_log, one_log) = (Append::new(dir, "all")?, Append::new(dir, "one")?);
        let began = Instant::now();
        for turn in 0..OPERATIONS {
            if began.elapsed() > LONGEST * 2 && turn >= 20 {
                break;
            }
            let text = turn.to_string();
            state.sandbox.cgroup_path.clone_from(&text);
            for container in state.containers.values_mut() {
                container.cgroup_path.clone_from(&text);
            }
            let save = |driver: &mut FsDriver, state: &Whole| {
                Ok(driver.to_disk(anew(), &state.sandbox, &state.containers)?)
            };
            time(&mut series.full, || save(&mut careless, &state))?;
            time(&mut series.plain_save, || plain.save(&state))?;
            time(&mut series.full_synced, || save(&mut synced, &state))?;
            time(&mut series.append_all, || all_log.append(plain.bytes(), turn))?;
            let container = state.containers.get_mut(&name).context("no container")?;
            container.cgroup_path = format!("{text}, once more");
            let alone = |driver: &mut FsDriver, state: &Whole| {
                let container = &state.containers[&name];
                Ok(driver.save_container(anew(), &id, &name, container, None)?)
            };
            time(&mut series.one, || alone(&mut careless, &state))?;
            time(&mut series.one_synced, || alone(&mut synced, &state))?;
            let container = state.containers.get_mut(&name).context("no container")?;
            container.cgroup_path = format!("{text}, found out");
            time(&mut series.found, || save(&mut synced, &state))?;
            save(&mut careless, &state)?;
            time(&mut series.append_one, || one_log.append(one, turn))?;
            time(&mut series.load, || Ok(synced.from_disk(&id)?))?;
            time(&mut series.plain_load, || plain.load())?;
            let ask = Ask::exclusive(Duration::from_secs(1));
            time(&mut series.lock, || Ok(careless.lock(&id, ask)?))?;
        }
        Ok(series)
    }

    fn tell(&self, size: &Size, place: &str) {
        let kata = if place == "tmpfs" { &size.kata.tmpfs } else { &size.kata.disk };
        let [save, load] = kata.map(|(p50, p99)| format!("   Kata {p50} / {p99}"));
        eprintln!("state: {} on {place}, {} bytes; p50 / p99 in µs", size.name, self.bytes);
        let line = |what: &str, samples: &Samples, beside: &str| {
            let (p50, p99) = (samples.median() * 1000.0, samples.quantile(0.99) * 1000.0);
            eprintln!("  {what:<34} {p50:>9.0} / {p99:<9.0}{beside}");
        };
        line("full save", &self.full, &save);
        line("full save, synced", &self.full_synced, "");
        line("one container", &self.one, "");
        line("one container, synced", &self.one_synced, "");
        line("one container, found out, synced", &self.found, "");
        line("load", &self.load, &load);
        line("lock and unlock", &self.lock, "   Kata 4 / 6");
        line("serde_json and write", &self.plain_save, "");
        line("serde_json from bytes", &self.plain_load, "");
        line("append and fdatasync, all", &self.append_all, "");
        line("append and fdatasync, one", &self.append_one, "");
    }

    fn rows(&self, place: &str) -> Vec<Row> {
        let row = |what: &str, ours: f64, base: f64, most| Row {
            what: format!("state on {place}: {what}"),
            value: ours / base,
            unit: "x",
            budget: Budget::AtMost(most),
            detail: format!("{:.0} µs against {:.0} µs", ours * 1000.0, base * 1000.0),
        };
        let plain_synced = self.plain_save.median() + self.append_all.median();
        let mut rows = vec![
            row("full save vs. serde_json", self.full.median(), self.plain_save.median(), 1.5),
            row("the same, both synced", self.full_synced.median(), plain_synced, 1.5),
            row("load vs. serde_json", self.load.median(), self.plain_load.median(), 1.5),
            row("one vs. full save", self.one_synced.median(), self.full_synced.median(), 0.05),
        ];
        let (one, append) = (self.one_synced.median(), self.append_one.median());
        let mut one = row("one vs. append+sync", one, append, 2.0);
        // Nothing is made to last on a tmpfs: there the yardstick is a mere write.
        if place == "tmpfs" {
            one.budget = Budget::None;
        }
        rows.push(one);
        rows
    }
}

/// The documents as serde_json writes them, over files in place.
struct Plain {
    dir: PathBuf,
    sandbox: Vec<u8>,
    containers: Vec<Vec<u8>>,
}

impl Plain {
    fn new(dir: &Path, state: &Whole) -> Result<Self> {
        for name in state.containers.keys() {
            fs::create_dir_all(dir.join(name))?;
        }
        let sandbox = encode_sandbox(&state.sandbox)?;
        let containers =
            state.containers.values().map(encode_container).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_owned(), sandbox, containers })
    }

    fn bytes(&self) -> usize {
        self.sandbox.len() + self.containers.iter().map(Vec::len).sum::<usize>()
    }

    fn save(&mut self, state: &Whole) -> Result<()> {
        fs::write(self.dir.join("persist.json"), serde_json::to_vec(&state.sandbox)?)?;
        for (name, container) in &state.containers {
            let path = self.dir.join(name).join("persist.json");
            fs::write(path, serde_json::to_vec(container)?)?;
        }
        Ok(())
    }

    fn load(&self) -> Result<(SandboxState, Vec<ContainerState>)> {
        let containers = self.containers.iter().map(|bytes| serde_json::from_slice(bytes));
        Ok((serde_json::from_slice(&self.sandbox)?, containers.collect::<Result<_, _>>()?))
    }
}

/// A file that was allocated beforehand and is appended to, round and round.
struct Append {
    file: File,
}

impl Append {
    const LEN: u64 = 4 << 20;

    fn new(dir: &Path, name: &str) -> Result<Self> {
        let file = File::create(dir.join(name))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, Self::LEN)?;
        file.sync_all()?;
        Ok(Self { file })
    }

    fn append(&self, bytes: usize, turn: usize) -> Result<()> {
        let at = (bytes * turn) as u64 % (Self::LEN - bytes as u64);
        self.file.write_all_at(&vec![b'x'; bytes], at)?;
        Ok(self.file.sync_data()?)
    }
}
