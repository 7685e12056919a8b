//! `make bench`: speed and memory as ratios against a baseline in the same run.
//!
//! Nothing here is a test: the machine may be busy, so a figure over its budget is told
//! and the exit code is 1, but no other work depends on it.

mod bare;
mod blocks;
mod boot;
mod event;
mod live;
mod memory;
mod network;
mod pipe;
mod plugs;
mod raw;
mod shared;
mod state;
mod stream;
mod survive;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use table::{Budget, Row};

fn main() -> Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: coracle-benches COMMAND GUEST_DIR [boot|stream|memory|plugs|network|state|survive|baseline]...";
    let coracle = PathBuf::from(args.next().context(usage)?);
    let guest = PathBuf::from(args.next().context(usage)?);
    let mut wanted: Vec<String> = args.collect();
    if wanted.is_empty() {
        wanted = ["boot", "stream", "memory", "plugs", "network", "state", "survive"]
            .map(str::to_owned)
            .to_vec();
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let mut rows = Vec::new();
    for name in wanted {
        rows.extend(match name.as_str() {
            "boot" => boot::measure(&coracle, &guest, 9)?,
            "stream" => runtime.block_on(stream::measure(&coracle, &guest))?,
            "memory" => runtime.block_on(memory::measure(&coracle, &guest))?,
            "plugs" => runtime.block_on(plugs::measure(&coracle, &guest))?,
            "network" => network::measure(&coracle, &guest)?,
            "state" => state::measure()?,
            "survive" => runtime.block_on(survive::measure(&coracle, &guest))?,
            "baseline" => baselines(&guest)?,
            other => bail!("no bench named {other:?}; {usage}"),
        });
    }
    for row in &rows {
        println!("{}", row.line());
    }
    Ok(ExitCode::from(u8::from(!rows.iter().all(table::Row::holds))))
}

/// The baselines alone: what this machine can do without us.
fn baselines(guest: &std::path::Path) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("bare.img");
    std::fs::write(&initrd, bare::initrd())?;
    let told = |what: &str, value: f64, unit| Row {
        what: what.to_owned(),
        value,
        unit,
        budget: Budget::None,
        detail: String::new(),
    };
    let boot = bare::boot(&guest.join("vmlinux"), &initrd, 256)?;
    let raw = raw::copy(guest, 4096)?;
    Ok(vec![
        told("bare boot", boot.as_secs_f64() * 1000.0, "ms"),
        told("raw port, guest to host", raw.to_host / 1e6, "MB/s"),
        told("raw port, host to guest", raw.to_guest / 1e6, "MB/s"),
    ])
}
