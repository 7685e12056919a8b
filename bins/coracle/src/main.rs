//! The `coracle` command: parse, dispatch, map the outcome to an exit code.

mod accel;
mod cli;
mod detach;
mod doctor;
mod foreground;
mod guest;
mod keeper;
mod progress;
mod report;
mod run;
mod signals;
mod size;
mod state;
mod streams;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use coracle_engine::root::Root;

use cli::{Cli, Command, Format};

fn main() -> ExitCode {
    let raw: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&raw) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data; everything else is talk, and our failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { report::EXIT_FAILURE } else { 0 });
        }
    };
    start_log(&cli.log);
    let root = Root::choose(cli.root.as_deref());
    let mut format = Format::Text;
    let outcome = match cli.command {
        Command::Run(args) => {
            format = args.format;
            let swallowed = cli::dashes_swallowed(&raw, args.words.len());
            run::run(&args, cli::split_words(&args.words, swallowed), &root)
        }
        Command::Guest(args) => guest::run(args, &root),
        Command::Doctor(args) => doctor::run(args, &root),
        Command::State(args) => {
            format = args.format();
            state::run(args, &root)
        }
        Command::Keeper(args) => keeper::run(args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "coracle", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        report::print_error(&error, format);
        ExitCode::from(report::EXIT_FAILURE)
    })
}

/// Talk goes to stderr; a filter that does not parse falls back to warnings.
fn start_log(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
