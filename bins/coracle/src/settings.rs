//! `coracle settings`: what can be set, and what the configuration files say.

use std::io;
use std::process::ExitCode;

use clap::Args;
use coracle_engine::settings::{Places, Settings, fate, names};
use serde_json::json;

use crate::cli::Format;
use crate::columns;

/// `coracle settings`.
#[derive(Debug, Args)]
#[command(
    after_help = "A setting has an effect, or is always what it says, or is refused with the \
        reason. Files: /etc/coracle/config.toml, then coracle/config.toml in $XDG_CONFIG_HOME, with \
        tables [hypervisor] and [sandbox]; $CORACLE_CONFIG names one instead of both.\n\n\
        EXAMPLES:\n  \
        coracle settings\n  \
        coracle settings | grep effect\n  \
        coracle run --set MemorySize=512 --set EnableIOThreads=true -- nproc"
)]
pub struct SettingsArgs {
    /// How it is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

pub fn run(args: &SettingsArgs) -> anyhow::Result<ExitCode> {
    let settings =
        Settings::load(&Places::of_this_process()).map_err(coracle_engine::Error::from)?;
    match args.format {
        Format::Json => {
            let all = names().map(|name| {
                let (value, origin) = settings.asked(name).unzip();
                json!({ "name": name, "fate": fate(name), "value": value, "from": origin })
            });
            println!("{}", serde_json::Value::from_iter(all));
        }
        Format::Text => {
            let rows: Vec<[String; 3]> = names().map(|name| row(&settings, name)).collect();
            let head = [["SETTING", "IN FILES", "WHAT BECOMES OF IT"]];
            let rows = rows.iter().map(|row| [&*row[0], &*row[1], &*row[2]]);
            columns::print(&mut io::stdout(), &head.into_iter().chain(rows).collect::<Vec<_>>())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(settings: &Settings, name: &str) -> [String; 3] {
    let value = settings.asked(name).map(|(value, origin)| format!("{value} ({origin})"));
    [name.to_owned(), value.unwrap_or_default(), fate(name).unwrap_or_default()]
}
