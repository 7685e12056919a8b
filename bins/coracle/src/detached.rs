//! `coracle run --detach` and `coracle start`: a monitor is started in a session of its own and left
//! alone.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::client::{Client, ClientError};
use coracle_engine::monitor::api;
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::progress::Bar;

/// `coracle start`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle create --name web -p 8080:80 -- httpd -f -p 80; coracle start web\n  \
    coracle start web           again, after it has ended; its log goes on\n\n\
    It has what `create` or `run` gave it; what was plugged in later is not plugged in again.")]
pub struct StartArgs {
    /// The sandboxes, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,
    /// How errors and the outcome are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Starts sandboxes that are written down, one after the other.
pub fn start_all(args: &StartArgs, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let client = Client::find(root, name)?;
        let monitor = spawn(root, client.name(), &["--start"])?;
        let code = hear(monitor, client.name(), args.format)?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the order, waits until the command runs, and prints the sandbox's name.
pub fn run(root: &Root, order: &api::Order, format: Format) -> Result<ExitCode> {
    let name = order.sandbox.name.clone().unwrap_or_default();
    let mut monitor = spawn(root, &name, &[])?;
    // Kept open while we wait: whoever goes away before the command runs takes the order back.
    let orders = monitor.stdin.as_mut().context("the monitor has no standard input")?;
    let mut text = serde_json::to_string(order)?;
    text.push('\n');
    // One that has died already is found out below.
    let _ = orders.write_all(text.as_bytes()).and_then(|()| orders.flush());
    hear(monitor, &name, format)
}

/// Hears what becomes of it.
fn hear(mut monitor: Child, name: &str, format: Format) -> Result<ExitCode> {
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
    anyhow::bail!("the monitor of {name} ended without a word ({status})")
}

/// Starts the monitor, which makes a session of its own: no signal meant for us reaches it.
fn spawn(root: &Root, name: &str, options: &[&str]) -> Result<Child> {
    let log = root.monitor_log().context("cannot open the monitors' log")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    if let Some(dir) = root.given() {
        command.arg("--root").arg(dir);
    }
    command.args(["monitor", name]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.current_dir("/");
    command.spawn().context("cannot start the monitor")
}
