//! `coracle gc`: what is left on the host and belongs to nobody.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::gc::{self, Leak};
use coracle_engine::root::Root;

use crate::cli::Format;

/// `coracle gc`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle gc              what there is, who made it and when\n  \
    coracle gc --force      take it away\n  \
    coracle gc --dry-run --format json\n\n\
    On a terminal nothing is removed unless --force is given; elsewhere, as in a timer, everything \
    found is removed unless --dry-run is given. Nothing of a sandbox that lives is touched, and \
    nothing that is not coracle's. Exit code 1: something is left.")]
pub struct GcArgs {
    /// Only say what there is.
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
    /// Take it away, also on a terminal.
    #[arg(long)]
    force: bool,
    /// How the list and errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Looks, and takes away.
pub fn run(args: &GcArgs, root: &Root) -> Result<ExitCode> {
    let attended = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let is_dry = args.dry_run || (attended && !args.force);
    let leaks = gc::look(root)?;
    let mut left = 0;
    for leak in &leaks {
        let outcome = match is_dry {
            true => None,
            false => Some(crate::life::block_on(async { Ok(gc::clear(root, leak).await) })?),
        };
        let word = match &outcome {
            None => "found",
            Some(Ok(())) => "removed",
            Some(Err(_)) => "failed",
        };
        left += usize::from(!matches!(outcome, Some(Ok(()))));
        print(args.format, leak, word)?;
        if let Some(Err(error)) = outcome {
            crate::report::print_error(&error.into(), args.format);
        }
    }
    if args.format == Format::Text && leaks.is_empty() {
        println!("nothing is left behind");
    }
    if is_dry && !leaks.is_empty() && args.format == Format::Text {
        eprintln!("nothing was removed: `coracle gc --force` does");
    }
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(format: Format, leak: &Leak, word: &str) -> Result<()> {
    match format {
        Format::Json => {
            let mut object = serde_json::to_value(leak)?;
            object["outcome"] = word.into();
            println!("{object}");
        }
        Format::Text => {
            let since = leak.since.as_deref().unwrap_or("-");
            println!(
                "{word:8} {:9} {}  (sandbox {}, {since}: {})",
                leak.kind.name(),
                leak.what,
                leak.sandbox,
                leak.why
            );
        }
    }
    Ok(())
}
