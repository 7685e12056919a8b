//! Anonymous memory of the agent and the keeper: with ten containers after a minute, and
//! after a thousand processes that came and went.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt;

use crate::live::{Live, exec};
use crate::table::{Budget, Row};

/// Measures both.
///
/// # Errors
/// A VM does not boot, a process does not run.
pub async fn measure(coracle: &Path, guest: &Path) -> Result<Vec<Row>> {
    let live = Live::boot(coracle, guest).await?;
    let mut containers = Vec::new();
    for n in 0..10 {
        containers.push(live.container(&format!("c{n}"), "exec sleep 100000", false).await?);
    }
    let keeper = keeper_pid()?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let first = &containers[0].0;
    let before = (agent_kib(first).await?, status_kib(keeper)?);
    for n in 0..1000 {
        let process = exec(first, &["true"]).await?;
        ensure!(process.wait().await? == 0, "true failed");
        process.close().await?;
        if n % 100 == 99 {
            eprintln!("memory: {} processes", n + 1);
        }
    }
    let after = (agent_kib(first).await?, status_kib(keeper)?);
    for (_, process) in &containers {
        process.kill().await?;
    }
    live.vm.close().await?;
    let row = |what: &str, kib: u64, budget, detail: String| Row {
        what: what.to_owned(),
        value: as_mib(kib),
        unit: "MiB",
        budget,
        detail,
    };
    let grown = |before: u64, after: u64| format!("grew by {} KiB", after.saturating_sub(before));
    Ok(vec![
        row("agent, 10 containers, 60 s", before.0, Budget::AtMost(8.0), String::new()),
        row("agent, after 1000 execs", after.0, Budget::AtMost(8.0), grown(before.0, after.0)),
        row("keeper, 10 containers, 60 s", before.1, Budget::AtMost(4.0), String::new()),
        row("keeper, after 1000 execs", after.1, Budget::AtMost(4.0), grown(before.1, after.1)),
    ])
}

/// Kibibytes as mebibytes.
#[expect(clippy::cast_precision_loss, reason = "memory of a small program")]
pub fn as_mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The agent's anonymous memory, from its status file in the container.
async fn agent_kib(container: &coracle_uvm::container::Container) -> Result<u64> {
    let process = exec(container, &["cat", "/tmp/agent"]).await?;
    let mut text = String::new();
    process.take_stdio().stdout.context("no stdout")?.read_to_string(&mut text).await?;
    process.wait().await?;
    process.close().await?;
    anonymous_kib(&text)
}

/// The anonymous memory of a process.
///
/// # Errors
/// It is gone.
pub fn status_kib(pid: u32) -> Result<u64> {
    anonymous_kib(&fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn anonymous_kib(status: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no RssAnon")?;
    Ok(number.parse()?)
}

/// The one child of ours that is a keeper.
fn keeper_pid() -> Result<u32> {
    let ours = format!("PPid:\t{}\n", std::process::id());
    for entry in fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("cmdline").contains("\0keeper\0") && read("status").contains(&ours) {
            return Ok(entry.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("there is no keeper among our children")
}
