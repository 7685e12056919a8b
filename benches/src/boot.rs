//! Cold boot and the first byte of a container, beside the bare VM, in turns.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::table::{Budget, Row, Samples, middle};
use crate::{bare, blocks};

/// Memory of both sides, in MiB.
const MEMORY_MIB: u64 = 256;

/// Measures `rounds` rounds of each.
///
/// # Errors
/// A VM does not boot.
pub fn measure(coracle: &Path, guest: &Path, rounds: u32) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("bare.img");
    std::fs::write(&initrd, bare::initrd())?;
    let vmlinux = guest.join("vmlinux");

    let cache = dir.path().join("cold");
    let uncached = run_once(coracle, guest, &cache)?;
    let (mut bare_boot, mut ready, mut first) =
        (Samples::default(), Side::default(), Side::default());
    for round in 0..rounds {
        let bare = bare::boot(&vmlinux, &initrd, MEMORY_MIB)?;
        bare_boot.add(bare);
        let run = run_once(coracle, guest, &cache)?;
        ready.add(run.ready, bare);
        first.add(run.first_byte, bare);
        eprintln!("boot: round {} of {rounds}", round + 1);
    }
    let base = bare_boot.median();
    let row = |what: &str, side: &Side, budget| Row {
        what: what.to_owned(),
        value: side.ratio(),
        unit: "x",
        budget,
        detail: format!("{:.0} ms against {base:.0} ms bare", side.took.median()),
    };
    let mut rows = vec![
        row("guest ready vs. bare QEMU", &ready, Budget::AtMost(1.35)),
        row("run to the first byte vs. bare QEMU", &first, Budget::AtMost(1.6)),
        Row {
            what: "run to the first byte, rootfs not cached".to_owned(),
            value: uncached.first_byte.as_secs_f64() * 1000.0,
            unit: "ms",
            budget: Budget::None,
            detail: String::new(),
        },
    ];
    rows.extend(blocks::measure(coracle, guest, MEMORY_MIB)?);
    Ok(rows)
}

/// Our side: how long it took, and how that compares to the baseline that ran just before.
#[derive(Default)]
struct Side {
    took: Samples,
    ratios: Vec<f64>,
}

impl Side {
    fn add(&mut self, took: Duration, baseline: Duration) {
        self.took.add(took);
        self.ratios.push(took.as_secs_f64() / baseline.as_secs_f64());
    }

    /// The middle one of the ratios of all rounds: the machine changes its pace from minute to minute, and both
    /// sides of a round have the same.
    fn ratio(&self) -> f64 {
        middle(&mut self.ratios.clone())
    }
}

struct Run {
    ready: Duration,
    first_byte: Duration,
}

/// `coracle run`, timed from outside to the first byte, from its timeline to the agent.
fn run_once(coracle: &Path, guest: &Path, root: &Path) -> Result<Run> {
    let started = Instant::now();
    let mut child = command(coracle, guest, root, MEMORY_MIB)?
        .args(["--timeline", "--format", "json", "--", "echo", "x"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start coracle")?;
    let mut byte = [0];
    let read = child.stdout.as_mut().context("no output")?.read(&mut byte)?;
    let first_byte = started.elapsed();
    let out = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(read == 1 && out.status.success(), "coracle run failed: {said}");
    let at = timeline(&said)?;
    let at = |phase| at.get(phase).with_context(|| format!("no phase {phase:?} in the timeline"));
    let ready = Duration::from_secs_f64((at("agent")? - at("spawn")?) / 1000.0);
    Ok(Run { ready, first_byte })
}

/// The beginning of a `coracle run` with a data directory of its own.
///
/// # Errors
/// That directory cannot be made.
pub fn command(coracle: &Path, guest: &Path, root: &Path, memory_mib: u64) -> Result<Command> {
    std::fs::create_dir_all(root)?;
    let link = root.join("guest");
    if !link.exists() {
        std::os::unix::fs::symlink(guest, link)?;
    }
    let mut command = Command::new(coracle);
    command.arg("--root").arg(root).args(["run", "--accel", "tcg", "--memory"]);
    command.arg(format!("{memory_mib}m"));
    Ok(command)
}

/// When each phase ended, in milliseconds, by what `coracle run --timeline --format json` said.
///
/// # Errors
/// It said none.
pub fn timeline(said: &str) -> Result<BTreeMap<String, f64>> {
    let line = said.lines().find(|line| line.contains("\"timeline\"")).context("no timeline")?;
    let value: serde_json::Value = serde_json::from_str(line)?;
    let phases = value["timeline"].as_array().context("no timeline")?;
    let ended = |phase: &serde_json::Value| {
        Some((phase["phase"].as_str()?.to_owned(), phase["at_ms"].as_f64()?))
    };
    Ok(phases.iter().filter_map(ended).collect())
}
