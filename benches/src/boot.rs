//! Cold boot and the first byte of a container, beside the bare VM, in turns.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bare;
use crate::table::{Budget, Row, Samples};

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
        (Samples::default(), Samples::default(), Samples::default());
    for round in 0..rounds {
        bare_boot.add(bare::boot(&vmlinux, &initrd, MEMORY_MIB)?);
        let run = run_once(coracle, guest, &cache)?;
        ready.add(run.ready);
        first.add(run.first_byte);
        eprintln!("boot: round {} of {rounds}", round + 1);
    }
    let base = bare_boot.median();
    let row = |what: &str, samples: &Samples, budget| Row {
        what: what.to_owned(),
        value: samples.median() / base,
        unit: "x",
        budget,
        detail: format!("{:.0} ms against {base:.0} ms bare", samples.median()),
    };
    Ok(vec![
        row("guest ready vs. bare QEMU", &ready, Budget::AtMost(1.35)),
        row("run to the first byte vs. bare QEMU", &first, Budget::AtMost(1.6)),
        Row {
            what: "run to the first byte, rootfs not cached".to_owned(),
            value: uncached.first_byte.as_secs_f64() * 1000.0,
            unit: "ms",
            budget: Budget::None,
            detail: String::new(),
        },
    ])
}

struct Run {
    ready: Duration,
    first_byte: Duration,
}

/// `coracle run`, timed from outside to the first byte, from its timeline to the agent.
fn run_once(coracle: &Path, guest: &Path, root: &Path) -> Result<Run> {
    std::fs::create_dir_all(root)?;
    let link = root.join("guest");
    if !link.exists() {
        std::os::unix::fs::symlink(guest, link)?;
    }
    let started = Instant::now();
    let mut child = Command::new(coracle)
        .arg("--root")
        .arg(root)
        .args(["run", "--accel", "tcg", "--memory"])
        .arg(format!("{MEMORY_MIB}m"))
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
