//! Completion: the shell asks this program, so that it knows the sandboxes there are.
//!
//! The script that `coracle completion SHELL` prints calls `coracle` with `CORACLE_COMPLETE=SHELL` in its
//! environment, and the words typed so far; [`answer`] does the rest.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory};
use clap_complete::env::{CompleteEnv, Shells};
use clap_complete::{ArgValueCompleter, CompletionCandidate, Shell};
use coracle_engine::client;
use coracle_engine::root::Root;

use crate::cli::Cli;

/// What the shell sets when it asks.
const VARIABLE: &str = "CORACLE_COMPLETE";

/// Answers the shell and ends, if it is the shell that asks.
pub fn answer() {
    CompleteEnv::with_factory(|| with_names(Cli::command())).var(VARIABLE).complete();
}

/// Prints what a shell reads to know us.
pub fn print_script(shell: Shell, out: &mut dyn Write) -> std::io::Result<()> {
    match Shells::builtins().completer(&shell.to_string()) {
        Some(known) => known.write_registration(VARIABLE, "coracle", "coracle", "coracle", out),
        None => {
            clap_complete::generate(shell, &mut Cli::command(), "coracle", out);
            Ok(())
        }
    }
}

/// Every argument that names sandboxes knows those there are.
fn with_names(command: Command) -> Command {
    let knows = |arg: Arg| match arg.get_id().as_str() {
        "sandbox" | "sandboxes" => arg.add(ArgValueCompleter::new(sandboxes)),
        _ => arg,
    };
    command.mut_args(knows).mut_subcommands(with_names)
}

/// The sandboxes whose names begin so. Where there are none, or they cannot be read, there is nothing
/// to complete.
fn sandboxes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let given = std::env::var_os("CORACLE_ROOT").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let begun = begun.to_string_lossy();
    let all = client::names(&Root::choose(given.as_deref())).unwrap_or_default();
    let fitting = all.into_iter().filter(|name| name.starts_with(&*begun));
    fitting.map(CompletionCandidate::new).collect()
}
