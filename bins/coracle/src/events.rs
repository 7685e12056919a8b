//! `coracle events`: what has happened to sandboxes, and what goes on happening.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::events::{Event, Events};
use coracle_engine::root::Root;

use crate::cli::Format;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// `coracle events`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle events                      what is remembered\n  \
    coracle events -f web --format json | jq .event\n\n\
    EVENTS: created creating running paused stopping exited removing removed, and adopted when \
    another monitor has taken over.")]
pub struct EventsArgs {
    /// Of these sandboxes alone, by their whole names.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Go on as more happens, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// How they are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Prints them.
pub fn run(args: &EventsArgs, root: &Root) -> Result<ExitCode> {
    let mut events = Events::all(root);
    let mut next = || -> Result<()> {
        for event in events.read().context("cannot read what has happened")? {
            if args.sandboxes.is_empty() || args.sandboxes.contains(&event.sandbox) {
                print(&event, args.format)?;
            }
        }
        Ok(())
    };
    next()?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        std::thread::sleep(LOOK);
        next()?;
    }
}

fn print(event: &Event, format: Format) -> Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string(event)?),
        Format::Text => {
            let code = event.exit_code.map(|code| format!(" {code}")).unwrap_or_default();
            let reason = event.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            println!("{}  {}  {}{code}{reason}", event.time, event.sandbox, event.event);
        }
    }
    Ok(())
}
