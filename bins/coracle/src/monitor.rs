//! `coracle monitor`: owns one sandbox; started by `run --detach`, spoken to over its API.
//!
//! Its order comes on standard input as JSON, and what becomes of it goes to standard output, a line
//! each, until the command runs. Whoever gave the order and goes away before that takes it back.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::monitor::{self, Ended, api};
use coracle_engine::root::Root;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a monitor is told besides its order.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// The sandbox's name, for people who look at the list of processes.
    #[arg(value_name = "NAME")]
    name: String,
    /// Take up a sandbox whose monitor died, instead of an order.
    #[arg(long, conflicts_with = "start")]
    adopt: bool,
    /// Start a sandbox that is written down, instead of an order.
    #[arg(long)]
    start: bool,
}

/// Runs a sandbox to its end.
pub fn run(args: &MonitorArgs, root: &Root) -> Result<ExitCode> {
    // One that has become a fresh monitor leads its session already.
    let _ = rustix::process::setsid();
    if args.adopt {
        return adopt(args, root);
    }
    let mut lines = std::io::BufReader::new(std::io::stdin());
    let order = if args.start { None } else { Some(read_order(&mut lines, &args.name)?) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let ready = CancellationToken::new();
        let (taken_back, is_ready) = (cancel.clone(), ready.clone());
        // Blocks in a read for as long as the other side waits for us.
        std::thread::spawn(move || {
            let _ = lines.read(&mut [0]);
            if !is_ready.is_cancelled() {
                taken_back.cancel();
            }
        });
        cancel_when_told(&cancel)?;
        let progress =
            Box::new(|step: &coracle_engine::Step| report(&api::Report::Progress(step.clone())));
        let tell = |view: &api::SandboxView| {
            ready.cancel();
            report(&api::Report::Ready(Box::new(view.clone())));
            let_go_of_streams();
        };
        let outcome = match order {
            Some(order) => monitor::run(root, order, cancel, progress, tell).await,
            None => monitor::start(root, &args.name, cancel, progress, tell).await,
        };
        if let Err(error) = &outcome
            && !ready.is_cancelled()
        {
            report(&api::Report::Failed(api::Failure::of(error)));
            return Ok(None);
        }
        outcome.map(Some).map_err(anyhow::Error::from)
    });
    runtime.shutdown_background();
    match outcome? {
        None => Ok(ExitCode::FAILURE),
        Some(Ended::Over) => Ok(ExitCode::SUCCESS),
        Some(Ended::Again) => become_fresh(args, root),
    }
}

fn read_order(lines: &mut impl std::io::BufRead, name: &str) -> Result<api::Order> {
    let mut order = String::new();
    lines.read_line(&mut order).context("cannot read the order")?;
    let order: api::Order = serde_json::from_str(&order).context("cannot understand the order")?;
    anyhow::ensure!(order.sandbox.name.as_deref() == Some(name), "the order is for another");
    Ok(order)
}

/// Does for a sandbox what its dead monitor cannot do any more.
fn adopt(args: &MonitorArgs, root: &Root) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let ended = runtime.block_on(async {
        let cancel = CancellationToken::new();
        cancel_when_told(&cancel)?;
        let adopted = monitor::adopt(root, &args.name, cancel).await;
        adopted.with_context(|| format!("cannot take up the sandbox {}", args.name))
    });
    runtime.shutdown_background();
    match ended? {
        Ended::Over => Ok(ExitCode::SUCCESS),
        Ended::Again => become_fresh(args, root),
    }
}

/// Becomes a monitor that knows nothing but what is written down: of this program as it is now, which
/// may be a newer one.
fn become_fresh(args: &MonitorArgs, root: &Root) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(program()?);
    if let Some(dir) = root.given() {
        command.arg("--root").arg(dir);
    }
    command.args(["monitor", &args.name, "--adopt"]);
    // It returns only if it fails; the keeper then starts one.
    Err(command.exec()).context("cannot become a fresh monitor")
}

/// This program's path. The file may have been replaced since it was started.
fn program() -> Result<std::path::PathBuf> {
    let path = std::env::current_exe().context("cannot find this program")?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(path.clone(), Into::into))
}

fn cancel_when_told(cancel: &CancellationToken) -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::hangup()] {
        let mut told = signal(kind)?;
        let cancel = cancel.clone();
        tokio::spawn(async move {
            told.recv().await;
            cancel.cancel();
        });
    }
    Ok(())
}

/// A reader that is gone learns nothing; the thread at standard input sees that.
fn report(report: &api::Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Gives the pipes to the other side back, so that it sees their end.
fn let_go_of_streams() {
    let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else {
        return;
    };
    // Standard error stays: it is the log.
    let replaced =
        rustix::stdio::dup2_stdin(&null).and_then(|()| rustix::stdio::dup2_stdout(&null));
    if let Err(error) = replaced {
        tracing::warn!(%error, "cannot let go of the standard streams");
    }
}
