//! `coracle state copy`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_persist::codec::Tolerance;
use coracle_persist::driver::{PersistDriver, Save, read_sandbox_dir};

use super::{briefly, driver};

/// `coracle state copy`.
#[derive(Debug, Args)]
#[command(
    after_help = "The copy has a log of its own, and beside it Kata's files, byte for byte as \
        Kata writes them.\n\n\
        EXAMPLES:\n  \
        coracle state copy /run/vc/sbs/ID --to /tmp/root"
)]
pub struct CopyArgs {
    /// The sandbox's directory; its name is the sandbox's id.
    #[arg(value_name = "SANDBOX_DIR")]
    dir: PathBuf,
    /// The root to save under; it is made if there is none.
    #[arg(long, value_name = "ROOT")]
    to: PathBuf,
    /// Pass over bytes that follow a state in its file, as Kata does.
    #[arg(long)]
    accept_trailing: bool,
}

pub fn run(args: &CopyArgs) -> anyhow::Result<ExitCode> {
    let tolerance = if args.accept_trailing { Tolerance::TrailingBytes } else { Tolerance::Strict };
    let whole = read_sandbox_dir(&args.dir, tolerance)?.whole;
    let mut to = driver(Some(&args.to), &coracle_engine::root::Root::at(&args.to));
    let save = Save {
        sandbox: &whole.sandbox,
        containers: &whole.containers,
        record: whole.record.as_ref(),
        only_if: None,
    };
    let saved = to.save(briefly(), save)?;
    for note in &saved.notes {
        eprintln!("note: {note}");
    }
    let id = &whole.sandbox.sandbox_container;
    println!("{}", to.run_storage_path().join(id).display());
    Ok(ExitCode::SUCCESS)
}
