//! `coracle recover`: takes up sandboxes that have no monitor.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use coracle_engine::recover::{self, Outcome};
use coracle_engine::root::Root;
use serde_json::json;

use crate::cli::Format;

/// `coracle recover`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle recover            after the host was booted, or monitors and keepers were killed\n  \
    coracle recover web\n\n\
    What runs is taken over; what was half-made or half-removed is removed; what has ended is \
    written down. Exit code 1: something could not be taken up, and can be tried again.")]
pub struct RecoverArgs {
    /// The sandboxes; all if none is named.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// How the outcome and errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Takes them up.
pub fn run(args: &RecoverArgs, root: &Root) -> Result<ExitCode> {
    let recovered =
        crate::life::block_on(async { Ok(recover::all(root, &args.sandboxes).await?) })?;
    let mut code = ExitCode::SUCCESS;
    for (name, outcome) in recovered {
        let (word, error) = match &outcome {
            Ok(Outcome::Well) => ("well", None),
            Ok(Outcome::Adopted) => ("adopted", None),
            Ok(Outcome::Exited) => ("exited", None),
            Ok(Outcome::Removed) => ("removed", None),
            Err(error) => ("failed", Some(error.to_string())),
        };
        if error.is_some() {
            code = ExitCode::from(1);
        }
        match args.format {
            Format::Json => {
                println!("{}", json!({ "name": name, "outcome": word, "error": error }))
            }
            Format::Text => match error {
                Some(error) => println!("{name}  {word}: {error}"),
                None => println!("{name}  {word}"),
            },
        }
    }
    Ok(code)
}
