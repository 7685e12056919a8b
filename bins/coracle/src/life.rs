//! The verbs of a detached sandbox's life: `ls`, `inspect`, `wait`, `kill`, `stop`, `rm`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_engine::client::{self, Client};
use coracle_engine::monitor::api::{SandboxView, Stage};
use coracle_engine::root::Root;

use crate::cli::Format;

/// `coracle ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
    /// How the list is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// One sandbox.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle inspect`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle inspect web\n  \
    coracle inspect -f monitor.pid web\n  \
    coracle inspect -f networks.0.addresses web")]
pub struct InspectArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Print this member alone: names and numbers with dots between.
    #[arg(short, long, value_name = "PATH")]
    field: Option<String>,
    /// How errors and the whole are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The signal, by name (with or without SIG) or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = crate::signals::parse)]
    signal: i32,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The sandboxes, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,
    /// How many seconds the command may take to end before it is killed.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The sandboxes, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,
    /// Remove one that runs, too: its command is killed.
    #[arg(short, long)]
    force: bool,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Runs `work` on a small runtime.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(work)
}

/// Lists the sandboxes, from what is written down of them: nobody is asked, and a sandbox whose monitor
/// just died is there.
pub fn ls(args: &LsArgs, root: &Root) -> Result<ExitCode> {
    let mut views = Vec::new();
    for (name, view) in client::all(root)? {
        match view {
            Ok(view) => views.push(view),
            Err(error) => tracing::warn!(name, %error, "a sandbox cannot be read"),
        }
    }
    let mut out = std::io::stdout().lock();
    match args.format {
        _ if args.quiet => views.iter().try_for_each(|view| writeln!(out, "{}", view.name))?,
        Format::Json => writeln!(out, "{}", serde_json::to_string(&views)?)?,
        Format::Text => print_table(&mut out, &views)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(out: &mut impl Write, views: &[SandboxView]) -> std::io::Result<()> {
    let width = views.iter().map(|view| view.name.len()).max().unwrap_or(0).max(4);
    writeln!(out, "{:width$}  {:19}  {:24}  {:>5}  COMMAND", "NAME", "STATE", "CREATED", "PLUGS")?;
    for view in views {
        let state = match (view.exit_code, view.health) {
            (Some(code), _) => format!("exited {code}"),
            (None, Some(health)) => format!("{} ({})", view.state.name(), health.name()),
            (None, None) => view.state.name().to_owned(),
        };
        let (name, plugs) = (&view.name, view.plugs.len());
        let command = view.command.join(" ");
        writeln!(out, "{name:width$}  {state:19}  {:24}  {plugs:>5}  {command}", view.created)?;
    }
    Ok(())
}

/// Prints everything there is to say about a sandbox, or one member of it.
pub fn inspect(args: &InspectArgs, root: &Root) -> Result<ExitCode> {
    let client = Client::find(root, &args.sandbox)?;
    let view = block_on(async { Ok(client.show().await?) })?;
    let text = match (&args.field, args.format) {
        (Some(field), _) => member(&serde_json::to_value(&view)?, field)?,
        (None, Format::Json) => serde_json::to_string(&view)?,
        (None, Format::Text) => serde_json::to_string_pretty(&view)?,
    };
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// A member by its path; texts without their quotes.
fn member<'a>(view: &'a serde_json::Value, field: &str) -> Result<String> {
    let step = |value: &'a serde_json::Value, name: &str| match name.parse::<usize>() {
        Ok(index) => value.get(index),
        Err(_) => value.get(name),
    };
    let found = field.split('.').try_fold(view, step);
    match found {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => {
            let advice = "`coracle inspect SANDBOX` shows all there is".to_owned();
            Err(anyhow::anyhow!("it has no {field:?} now").context(crate::report::Advice(advice)))
        }
    }
}

/// Waits for the command's end and ends as it did.
pub fn wait(args: &OneArgs, root: &Root) -> Result<ExitCode> {
    let client = Client::find(root, &args.sandbox)?;
    let code = block_on(async { Ok(client.wait().await?) })?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

/// Sends the command a signal.
pub fn kill(args: &KillArgs, root: &Root) -> Result<ExitCode> {
    let client = Client::find(root, &args.sandbox)?;
    block_on(async { Ok(client.signal(args.signal).await?) })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the command and the VM; the sandbox stays to tell how it ended.
pub fn stop(args: &StopArgs, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let client = Client::find(root, name)?;
        block_on(async { Ok(client.stop(args.timeout).await?) })?;
        println!("{}", client.name());
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes everything of a sandbox.
pub fn rm(args: &RmArgs, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let client = Client::find(root, name)?;
        block_on(async {
            if !args.force && client.show().await?.state != Stage::Exited {
                let name = client.name();
                let advice = format!("stop it first (`coracle stop {name}`), or add --force");
                bail!(
                    anyhow::anyhow!("the sandbox {name} runs")
                        .context(crate::report::Advice(advice))
                );
            }
            Ok(client.remove().await?)
        })?;
        println!("{}", client.name());
    }
    Ok(ExitCode::SUCCESS)
}
