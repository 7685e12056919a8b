//! `coracle state import` and `coracle state export`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use coracle_engine::root::Root;
use coracle_persist::driver::{
    DriverError, FsDriver, PersistDriver, Save, export_to_kata, import_from_kata,
};
use coracle_persist::root::{KATA_ROOT, Root as StateRoot};
use coracle_persist::store::Generation;

use super::{briefly, driver, require_dir};

/// `coracle state import`.
#[derive(Debug, Args)]
#[command(after_help = "States of Kata 1.13, 2 and 3 are converted; what has no place in ours is \
        listed on stderr. The source is not changed. A sandbox that is here already is refused.\n\n\
        EXAMPLES:\n  \
        coracle state import                      all of /run/vc\n  \
        coracle state import --from /mnt/run/vc ID")]
pub struct ImportArgs {
    /// The sandboxes; all if not given.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Kata's root.
    #[arg(long, value_name = "ROOT", default_value = KATA_ROOT)]
    from: PathBuf,
    /// The root to save under; this installation's if not given.
    #[arg(long, value_name = "ROOT")]
    to: Option<PathBuf>,
    /// Put a sandbox in the place of one that is here already.
    #[arg(long)]
    replace: bool,
}

/// `coracle state export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each sandbox appears whole or not at all, without coracle's log, which Kata \
        would not keep up to date.\n\n\
        EXAMPLES:\n  \
        coracle state export web                  to /run/vc\n  \
        coracle state export --to /tmp/vc"
)]
pub struct ExportArgs {
    /// The sandboxes; all if not given.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The root to read from; this installation's if not given.
    #[arg(long, value_name = "ROOT")]
    from: Option<PathBuf>,
    /// Kata's root.
    #[arg(long, value_name = "ROOT", default_value = KATA_ROOT)]
    to: PathBuf,
    /// Put a sandbox in the place of one that is there already.
    #[arg(long)]
    replace: bool,
}

pub fn import(args: &ImportArgs, root: &Root) -> anyhow::Result<ExitCode> {
    require_dir(&args.from)?;
    let from = StateRoot::at(&args.from);
    let mut to = driver(args.to.as_ref(), root);
    for id in which(&args.ids, &args.from)? {
        let imported = import_from_kata(&from.run_storage_path().join(&id))?;
        if let Some(version) = imported.from {
            eprintln!("note: {id} was written by {version}");
        }
        for dropped in &imported.dropped {
            eprintln!("dropped: {id}: {dropped}");
        }
        let whole = &imported.whole;
        let save = Save {
            sandbox: &whole.sandbox,
            containers: &whole.containers,
            record: whole.record.as_ref(),
            only_if: (!args.replace).then_some(Generation(0)),
        };
        let saved = to.save(briefly(), save).map_err(|error| match error {
            DriverError::Conflict { id, .. } => DriverError::Exists(id),
            error => error,
        })?;
        for note in &saved.notes {
            eprintln!("note: {note}");
        }
        println!("{id}");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn export(args: &ExportArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let mut from = driver(args.from.as_ref(), root);
    let path = from.root().path().to_owned();
    require_dir(&path)?;
    let to = StateRoot::at(&args.to);
    for id in which(&args.ids, &path)? {
        let loaded = from.from_disk(&id)?;
        if loaded.whole.record.is_some() {
            eprintln!("dropped: {id}: coracle.json, which Kata has no place for");
        }
        export_to_kata(&to, &loaded.whole, args.replace)?;
        println!("{id}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The sandboxes that were named, or all of a root's.
fn which(named: &[String], root: &Path) -> Result<Vec<String>, DriverError> {
    if named.is_empty() {
        return FsDriver::new(StateRoot::at(root)).list();
    }
    Ok(named.to_vec())
}
