//! `coracle state ls`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_engine::root::Root;
use coracle_persist::driver::{DriverError, Loaded, PersistDriver};
use serde_json::json;

use super::{Shape, driver, require_dir};

/// `coracle state ls`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
        coracle state ls\n  \
        coracle state ls /run/vc --format json | jq -r .id")]
pub struct LsArgs {
    /// The root; this installation's if not given.
    #[arg(value_name = "ROOT")]
    root: Option<PathBuf>,
    /// How to write the list.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Shape,
}

pub fn run(args: &LsArgs, root: &Root) -> anyhow::Result<ExitCode> {
    if let Some(named) = &args.root {
        require_dir(named)?;
    }
    let mut driver = driver(args.root.as_ref(), root);
    let mut rows = Vec::new();
    for id in driver.list()? {
        match driver.from_disk(&id) {
            // Deleted since it was listed, or made for a first save that has not come.
            Err(DriverError::Absent(_)) => {}
            read => rows.push((id, read)),
        }
    }
    match args.format {
        Shape::Json => rows.iter().for_each(|(id, read)| println!("{}", as_json(id, read))),
        Shape::Text => print!("{}", table(&rows)),
    }
    Ok(ExitCode::SUCCESS)
}

type Row = (String, Result<Loaded, DriverError>);

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|(id, _)| id.len()).max().unwrap_or(0).max("SANDBOX".len());
    let mut text =
        format!("{:<width$}  {:<9}  {:>10}  GENERATION\n", "SANDBOX", "STATE", "CONTAINERS");
    for (id, read) in rows {
        let line = match read {
            Ok(loaded) => {
                let state = loaded.whole.sandbox.state.to_string();
                let containers = loaded.whole.containers.len();
                format!("{id:<width$}  {state:<9}  {containers:>10}  {}\n", loaded.generation)
            }
            Err(error) => format!("{id:<width$}  unreadable: {error}\n"),
        };
        text.push_str(&line);
    }
    text
}

fn as_json(id: &str, read: &Result<Loaded, DriverError>) -> serde_json::Value {
    match read {
        Ok(loaded) => json!({
            "id": id,
            "state": loaded.whole.sandbox.state.to_string(),
            "containers": loaded.whole.containers.keys().collect::<Vec<_>>(),
            "generation": loaded.generation.0,
            "edited": loaded.edited,
        }),
        Err(error) => {
            json!({ "id": id, "error": { "code": error.code(), "message": error.to_string() } })
        }
    }
}
