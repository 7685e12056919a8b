//! A container's standard streams end to end, beside a raw port; and beside that what a pipe before or behind it
//! brings with nobody of ours there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::live::Live;
use crate::raw;
use crate::table::{Budget, Row, Samples, middle};

/// Blocks of 64 KiB each way.
const BLOCKS: u32 = 2048;

/// Streams and signals of one VM.
///
/// # Errors
/// A VM does not boot, a stream breaks.
pub async fn measure(coracle: &Path, guest: &Path) -> Result<Vec<Row>> {
    let live = Live::boot(coracle, guest).await?;
    let (mut out, mut into) = (Vec::new(), Vec::new());
    let (mut raw_out, mut piped) = (Vec::new(), Vec::new());
    let (mut raw_into, mut into_pipe) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let at = guest.to_owned();
        let base = tokio::task::spawn_blocking(move || raw::copy(&at, BLOCKS)).await??;
        raw_out.push(base.to_host);
        piped.push(base.piped);
        raw_into.push(base.to_guest);
        into_pipe.push(base.into_pipe);
        out.push(to_host(&live, &format!("out{round}")).await?);
        into.push(to_guest(&live, &format!("in{round}")).await?);
        eprintln!("stream: round {} of 3", round + 1);
    }
    let row = |what: &str, ours: &mut Vec<f64>, raw: &mut Vec<f64>, least| {
        let (ours, raw) = (middle(ours), middle(raw));
        Row {
            what: what.to_owned(),
            value: ours / raw,
            unit: "x",
            budget: Budget::AtLeast(least),
            detail: format!("{:.0} MB/s against {:.0} MB/s raw", ours / 1e6, raw / 1e6),
        }
    };
    let mut rows = vec![
        row("stream guest to host vs. a raw port", &mut out, &mut raw_out, 0.4),
        row("stream host to guest vs. a raw port", &mut into, &mut raw_into, 0.5),
    ];
    let bare = |place: &str, whose: &str, piped: &mut Vec<f64>, raw: &mut Vec<f64>| {
        let (piped, raw) = (middle(piped), middle(raw));
        Row {
            what: format!("a pipe {place} a raw port vs. a raw port"),
            value: piped / raw,
            unit: "x",
            budget: Budget::None,
            detail: format!(
                "{:.0} MB/s: the port as a container's {whose} would have it",
                piped / 1e6
            ),
        }
    };
    rows.push(bare("before", "output", &mut piped, &mut raw_out));
    rows.push(bare("behind", "input", &mut into_pipe, &mut raw_into));
    rows.push(signals(&live).await?);
    live.vm.close().await?;
    Ok(rows)
}

async fn to_host(live: &Live, id: &str) -> Result<f64> {
    let script = format!("echo r; dd if=/dev/zero bs=64k count={BLOCKS} 2>/dev/null");
    let (container, process) = live.container(id, &script, false).await?;
    let mut stdout = process.take_stdio().stdout.context("no stdout")?;
    let mut buffer = vec![0; 1 << 18];
    stdout.read_exact(&mut buffer[..2]).await?;
    let started = Instant::now();
    let mut total = 0_u64;
    loop {
        let n = stdout.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        total += n as u64;
    }
    let rate = raw::rate(total, started);
    ensure!(total == u64::from(BLOCKS) * 65536, "{total} bytes came");
    process.wait().await?;
    container.close().await?;
    Ok(rate)
}

async fn to_guest(live: &Live, id: &str) -> Result<f64> {
    let (container, process) = live.container(id, "echo r; cat >/dev/null; echo d", true).await?;
    let stdio = process.take_stdio();
    let (mut stdin, mut stdout) =
        (stdio.stdin.context("no stdin")?, stdio.stdout.context("no stdout")?);
    let mut said = [0; 2];
    stdout.read_exact(&mut said).await?;
    let block = vec![0; 65536];
    let started = Instant::now();
    for _ in 0..BLOCKS {
        stdin.write_all(&block).await?;
    }
    stdin.shutdown().await?;
    stdout.read_exact(&mut said).await?;
    let rate = raw::rate(u64::from(BLOCKS) * 65536, started);
    process.wait().await?;
    container.close().await?;
    Ok(rate)
}

/// Delivers a signal nobody minds, many times, in silence and beside a flood of output.
async fn signals(live: &Live) -> Result<Row> {
    let (_target, sleeper) = live.container("sleeper", "sleep 1000", false).await?;
    let idle = deliver(&sleeper).await?;
    let (_source, flood) = live.container("flood", "exec cat /dev/zero", false).await?;
    let mut stdout = flood.take_stdio().stdout.context("no stdout")?;
    let drain = tokio::spawn(async move {
        let (started, mut total) = (Instant::now(), 0_u64);
        let mut buffer = vec![0; 1 << 18];
        while let Ok(n @ 1..) = stdout.read(&mut buffer).await {
            total += n as u64;
            // No faster than 100 MB/s.
            let due = Duration::from_micros(total / 100);
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let flooded = deliver(&sleeper).await?;
    flood.kill().await?;
    flood.wait().await?;
    drain.abort();
    sleeper.kill().await?;
    Ok(Row {
        what: "signal latency p99 in a flood vs. idle".to_owned(),
        value: flooded.quantile(0.99) / idle.quantile(0.99),
        unit: "x",
        budget: Budget::AtMost(3.0),
        detail: format!(
            "p50/p99 {:.2}/{:.2} ms against {:.2}/{:.2} ms idle",
            flooded.median(),
            flooded.quantile(0.99),
            idle.median(),
            idle.quantile(0.99)
        ),
    })
}

async fn deliver(process: &coracle_uvm::container::Process) -> Result<Samples> {
    const SIGWINCH: i32 = 28;
    let mut samples = Samples::default();
    for _ in 0..500 {
        let asked = Instant::now();
        ensure!(process.signal(Some(SIGWINCH)).await?, "the signal was not delivered");
        samples.add(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(samples)
}
