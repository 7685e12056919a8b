//! The verbs of a detached sandbox's life: `ls`, `inspect`, `wait`, `kill`, `stop`, `rm`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_engine::client::{self, Client, RemoteContainer};
use coracle_engine::drift::Drift;
use coracle_engine::monitor::api::{ContainerStage, ContainerView, SandboxView, Stage};
use coracle_engine::root::Root;

use crate::cli::Format;

/// `coracle ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "Further containers of a sandbox are listed behind it, as SANDBOX/CONTAINER."
)]
pub struct LsArgs {
    /// Of these alone, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
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
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
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
    coracle inspect --drift web          whether all is as it is written down\n  \
    coracle inspect -f networks.0.addresses web")]
pub struct InspectArgs {
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Print this member alone: names and numbers with dots between.
    #[arg(short, long, value_name = "PATH")]
    field: Option<String>,
    /// Say where what is written down and what there is differ; exit code 1 if they do.
    #[arg(long, conflicts_with = "field")]
    drift: bool,
    /// How errors and the whole are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
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
    /// Sandboxes, or further containers as SANDBOX/CONTAINER; beginnings of names that are nobody
    /// else's will do.
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
    /// Sandboxes, or further containers as SANDBOX/CONTAINER; beginnings of names that are nobody
    /// else's will do.
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
    let found = args.sandboxes.iter().map(|name| Client::find(root, name));
    let wanted = found.collect::<Result<Vec<_>, _>>()?;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|it| it.name() == name);
    for (name, view) in client::all(root)?.into_iter().filter(|(name, _)| is_wanted(name)) {
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
    let names = views.iter().flat_map(|view| {
        let further = view.containers.iter().map(|it| address(view, it));
        std::iter::once(view.name.clone()).chain(further)
    });
    let width = names.map(|name| name.len()).max().unwrap_or(0).max(4);
    writeln!(out, "{:width$}  {:19}  {:24}  {:>5}  COMMAND", "NAME", "STATE", "CREATED", "PLUGS")?;
    let mut row = |name: &str, state: &str, created: &str, plugs: &str, command: &[String]| {
        let command = command.join(" ");
        writeln!(out, "{name:width$}  {state:19}  {created:24}  {plugs:>5}  {command}")
    };
    for view in views {
        let state = match (view.exit_code, view.health) {
            (Some(code), _) => format!("exited {code}"),
            (None, Some(health)) => format!("{} ({})", view.state.name(), health.name()),
            (None, None) => view.state.name().to_owned(),
        };
        row(&view.name, &state, &view.created, &view.plugs.len().to_string(), &view.command)?;
        for it in &view.containers {
            let state = match it.exit_code {
                Some(code) => format!("exited {code}"),
                None => it.state.name().to_owned(),
            };
            row(&address(view, it), &state, &it.created, "", &it.command)?;
        }
    }
    Ok(())
}

fn address(sandbox: &SandboxView, container: &ContainerView) -> String {
    format!("{}/{}", sandbox.name, container.name)
}

/// Prints everything there is to say about a sandbox, or one member of it.
pub fn inspect(args: &InspectArgs, root: &Root) -> Result<ExitCode> {
    let found = RemoteContainer::find(root, &args.sandbox)?;
    if args.drift {
        return inspect_drift(&found, args.format);
    }
    let view = match found.name() {
        None => serde_json::to_value(block_on(async { Ok(found.sandbox().show().await?) })?)?,
        Some(_) => serde_json::to_value(found.show()?)?,
    };
    let text = match (&args.field, args.format) {
        (Some(field), _) => member(&view, field)?,
        (None, Format::Json) => serde_json::to_string(&view)?,
        (None, Format::Text) => serde_json::to_string_pretty(&view)?,
    };
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn inspect_drift(of: &RemoteContainer, format: Format) -> Result<ExitCode> {
    let drifts = block_on(async { Ok(of.sandbox().drift().await?) })?;
    match format {
        Format::Json => println!("{}", serde_json::to_string(&drifts)?),
        Format::Text if drifts.is_empty() => println!("what is written down is what there is"),
        Format::Text => {
            for Drift { what, found, help } in &drifts {
                println!("{what}: {found}\n  help: {help}");
            }
        }
    }
    Ok(if drifts.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
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
    let container = RemoteContainer::find(root, &args.sandbox)?;
    let code = block_on(async { Ok(container.wait().await?) })?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

/// Sends the command a signal.
pub fn kill(args: &KillArgs, root: &Root) -> Result<ExitCode> {
    let container = RemoteContainer::find(root, &args.sandbox)?;
    block_on(async { Ok(container.signal(args.signal).await?) })?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the command, and the VM if it is the sandbox's own; it stays to tell how it ended.
pub fn stop(args: &StopArgs, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let container = RemoteContainer::find(root, name)?;
        block_on(async { Ok(container.stop(args.timeout).await?) })?;
        println!("{}", container.address());
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes everything of a sandbox, or of one further container.
pub fn rm(args: &RmArgs, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let container = RemoteContainer::find(root, name)?;
        block_on(async {
            if !args.force && !has_ended(&container).await? {
                let address = container.address();
                let what = if container.name().is_some() { "container" } else { "sandbox" };
                let advice = format!("stop it first (`coracle stop {address}`), or add --force");
                let runs = anyhow::anyhow!("the {what} {address} runs");
                bail!(runs.context(crate::report::Advice(advice)));
            }
            Ok(container.remove().await?)
        })?;
        println!("{}", container.address());
    }
    Ok(ExitCode::SUCCESS)
}

async fn has_ended(container: &RemoteContainer) -> Result<bool> {
    Ok(match container.name() {
        None => container.sandbox().show().await?.state == Stage::Exited,
        Some(_) => container.show()?.state == ContainerStage::Exited,
    })
}
