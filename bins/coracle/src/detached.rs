//! `coracle run --detach`: starts a monitor in a session of its own and leaves it alone.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use coracle_engine::client::ClientError;
use coracle_engine::monitor::api;
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::progress::Bar;

/// Gives the order, waits until the command runs, and prints the sandbox's name.
pub fn run(root: &Root, order: &api::Order, format: Format) -> Result<ExitCode> {
    let name = order.sandbox.name.clone().unwrap_or_default();
    let mut monitor = start(root, &name)?;
    let mut orders = monitor.stdin.take().context("the monitor has no standard input")?;
    let mut text = serde_json::to_string(order)?;
    text.push('\n');
    // One that has died already is found out below.
    let _ = orders.write_all(text.as_bytes()).and_then(|()| orders.flush());
    let reports = monitor.stdout.take().context("the monitor has no standard output")?;
    let bar = Bar::new();
    let mut tell = bar.callback();
    for line in BufReader::new(reports).lines() {
        let line = line.context("cannot hear the monitor")?;
        match serde_json::from_str(&line).context("cannot understand the monitor")? {
            api::Report::Progress(step) => tell(&step),
            api::Report::Ready(view) => {
                drop(bar);
                match format {
                    Format::Text => println!("{}", view.name),
                    Format::Json => println!("{}", serde_json::to_string(&view)?),
                }
                return Ok(ExitCode::SUCCESS);
            }
            api::Report::Failed(failure) => {
                drop(bar);
                let ended = monitor.wait().context("cannot wait for the monitor")?;
                tracing::debug!(?ended, "the monitor gave up");
                let error = ClientError::from(failure);
                let Some(code) = error.exit_code() else { return Err(error.into()) };
                crate::report::print_error(&error.into(), format);
                return Ok(ExitCode::from(code));
            }
        }
    }
    let status = monitor.wait().context("cannot wait for the monitor")?;
    anyhow::bail!("the monitor of {name} ended without a word ({status}); its log is {}", log(root))
}

/// Starts the monitor, which makes a session of its own: no signal meant for us reaches it.
fn start(root: &Root, name: &str) -> Result<std::process::Child> {
    let path = log(root);
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open the log {path}"))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    if let Some(dir) = root.given() {
        command.arg("--root").arg(dir);
    }
    command.args(["monitor", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.current_dir("/");
    command.spawn().context("cannot start the monitor")
}

fn log(root: &Root) -> String {
    root.data().join("monitor.log").display().to_string()
}
