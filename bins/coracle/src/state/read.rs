//! `coracle state read`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_engine::root::Root;
use coracle_persist::codec::{Tolerance, canonical};
use coracle_persist::driver::{Whole, import_from_kata, read_sandbox_dir, salvage_sandbox_dir};

use super::{LOSS, Shape};

/// `coracle state read`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --format json it is one line, {\"Sandbox\":...,\"Containers\":{...}}.\n\n\
        EXAMPLES:\n  \
        coracle state read web --format json\n  \
        coracle state read --salvage /run/vc/sbs/ID    what can be saved of a damaged one"
)]
pub struct ReadArgs {
    /// A sandbox, or the directory of one; its name is the sandbox's id.
    #[arg(value_name = "SANDBOX|DIR")]
    dir: PathBuf,
    /// How to write it.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Shape,
    /// Pass over bytes that follow a state in its file, as Kata does.
    #[arg(long)]
    accept_trailing: bool,
    /// Show the newest state that is whole, and say what is lost; exit 1 if something is.
    #[arg(long, conflicts_with_all = ["convert", "accept_trailing"])]
    salvage: bool,
    /// Show another Kata's state in our terms, and say what has no place in them.
    #[arg(long, conflicts_with = "accept_trailing")]
    convert: bool,
}

/// A directory as it is; a bare name with nothing of that name here is a sandbox of ours.
fn dir(args: &ReadArgs, root: &Root) -> PathBuf {
    let is_bare = args.dir.components().count() == 1 && !args.dir.exists();
    match args.dir.to_str() {
        Some(name) if is_bare => root.state(name),
        Some(_) | None => args.dir.clone(),
    }
}

pub fn run(args: &ReadArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let dir = &dir(args, root);
    let mut code = ExitCode::SUCCESS;
    let whole = if args.salvage {
        let salvaged = salvage_sandbox_dir(dir)?;
        for lost in &salvaged.lost {
            eprintln!("lost: {lost}");
            code = ExitCode::from(LOSS);
        }
        salvaged.whole
    } else if args.convert {
        let imported = import_from_kata(dir)?;
        for dropped in &imported.dropped {
            eprintln!("dropped: {dropped}");
        }
        imported.whole
    } else {
        let tolerance =
            if args.accept_trailing { Tolerance::TrailingBytes } else { Tolerance::Strict };
        let loaded = read_sandbox_dir(dir, tolerance)?;
        for file in &loaded.edited {
            eprintln!("note: {file} was edited by someone else; this is what the log says");
        }
        loaded.whole
    };
    let bytes = match args.format {
        Shape::Json => canonical(&whole.sandbox, &whole.containers)?,
        Shape::Text => text(&whole).into_bytes(),
    };
    std::io::stdout().write_all(&bytes)?;
    Ok(code)
}

/// The main things, for people.
fn text(whole: &Whole) -> String {
    let Whole { sandbox, containers, record } = whole;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12}{}", if value.is_empty() { "-" } else { &value });
    };
    line("sandbox", sandbox.sandbox_container.clone());
    line("state", sandbox.state.to_string());
    line("hypervisor", sandbox.config.hypervisor_type.to_string());
    line("vmm pid", sandbox.hypervisor_state.pid.to_string());
    line("agent", sandbox.agent_state.url.clone());
    line("cgroup", sandbox.cgroup_path.clone());
    line("netns", sandbox.network.net_ns_path.clone());
    line("endpoints", sandbox.network.endpoints.as_ref().map_or(0, Vec::len).to_string());
    line("devices", sandbox.devices.as_ref().map_or(0, Vec::len).to_string());
    line("record", record.as_ref().map_or("none".to_owned(), |r| format!("schema {}", r.schema)));
    for (id, state) in containers {
        line("container", format!("{id}  {}  pid {}", state.state, state.process.pid));
    }
    text
}
