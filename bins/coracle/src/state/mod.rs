//! `coracle state`: sandbox states as files, ours and Kata's.

mod check;
mod copy;
mod ls;
mod read;
mod transfer;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use coracle_engine::root::Root;
use coracle_persist::driver::{By, FsDriver};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root as StateRoot;

/// Something is damaged or refused.
const LOSS: u8 = 1;
/// Nothing is lost, but something is not as it should be.
const DISORDER: u8 = 2;

/// `coracle state`.
#[derive(Debug, Args)]
#[command(after_help = "A sandbox's state is a directory ROOT/sbs/ID. Coracle's has a log, \
        state.log, which is the truth, and beside it the files that Kata's reader knows; Kata's has \
        only these.\n\n\
        EXAMPLES:\n  \
        coracle state ls\n  \
        coracle state read /run/vc/sbs/ID --format json | jq .Sandbox.State\n  \
        coracle state check /run/vc/sbs/*/persist.json\n  \
        coracle state verify\n  \
        coracle state import --from /run/vc")]
pub struct StateArgs {
    #[command(subcommand)]
    verb: Verb,
}

/// The verbs of `coracle state`.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List the sandboxes whose states are kept.
    Ls(ls::LsArgs),
    /// Show a sandbox's state.
    Read(read::ReadArgs),
    /// Judge single files; exit 1 if any is damaged or refused.
    Check(check::CheckArgs),
    /// Load a sandbox's state and save it under another root.
    Copy(copy::CopyArgs),
    /// Compare every sandbox's files with what should be in them.
    Verify(verify::VerifyArgs),
    /// Take over states from a root of Kata's, of any version.
    Import(transfer::ImportArgs),
    /// Write states as Kata would, into a root of its.
    Export(transfer::ExportArgs),
}

/// How a listing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl StateArgs {
    /// How errors are written: as the data would be.
    pub fn format(&self) -> crate::cli::Format {
        let shape = match &self.verb {
            Verb::Ls(args) => args.format,
            Verb::Read(args) => args.format,
            Verb::Check(args) => args.format,
            Verb::Verify(args) => args.format,
            Verb::Copy(_) | Verb::Import(_) | Verb::Export(_) => Shape::Text,
        };
        match shape {
            Shape::Text => crate::cli::Format::Text,
            Shape::Json => crate::cli::Format::Json,
        }
    }
}

/// Runs a verb of `coracle state`.
///
/// # Errors
/// When a state cannot be read or written; what a verdict is about is none.
pub fn run(args: StateArgs, root: &Root) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Ls(args) => ls::run(&args, root),
        Verb::Read(args) => read::run(&args, root),
        Verb::Check(args) => check::run(&args),
        Verb::Copy(args) => copy::run(&args),
        Verb::Verify(args) => verify::run(&args, root),
        Verb::Import(args) => transfer::import(&args, root),
        Verb::Export(args) => transfer::export(&args, root),
    }
}

/// The states under a root that was named, or under this installation's.
fn driver(named: Option<&PathBuf>, root: &Root) -> FsDriver {
    FsDriver::new(StateRoot::at(named.map_or(root.data(), PathBuf::as_path)))
}

/// Saves take their lock for just as long as they need it.
fn briefly() -> By<'static> {
    By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create())
}

/// Refuses a root that is not there: a name mistyped is not an empty root.
fn require_dir(path: &Path) -> anyhow::Result<()> {
    let found = std::fs::metadata(path);
    match found {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => anyhow::bail!("{} is no directory", path.display()),
        Err(error) => {
            Err(anyhow::Error::new(error).context(format!("there is no root {}", path.display())))
        }
    }
}
