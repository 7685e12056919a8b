//! `coracle doctor`: what this host can do, what it lacks, and how to mend it.
//!
//! Three parts that know little of each other: [`probe`] looks at the host and
//! only collects facts; [`judge`] turns facts into checks and is pure, so every
//! verdict is tested without a host to match; [`table`] writes them down. The
//! exit code is the verdict: 0 all is well, 1 something works less well than
//! it could, 2 no VM will start, 125 a probe failed and we cannot tell.

mod facts;
mod judge;
mod probe;
mod table;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use coracle_engine::root::Root;
use serde::Serialize;

/// `coracle doctor`.
#[derive(Debug, Args)]
#[command(after_help = "EXIT CODES: 0 all is well; 1 there are warnings; 2 no VM will start; \
        125 a probe failed, so there is no verdict.\n\n\
        EXAMPLES:\n  \
        coracle doctor\n  \
        coracle doctor --format json | jq '.checks[] | select(.state != \"ok\")'")]
pub struct DoctorArgs {
    /// How to write the findings.
    #[arg(long, value_enum, default_value = "table")]
    format: DoctorFormat,
}

/// The forms of the findings.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DoctorFormat {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// How a check came out; the later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Works, but less well than it could.
    Warn,
    /// The probe itself failed.
    Unknown,
    /// No VM will start.
    Fail,
}

impl State {
    fn exit_code(self) -> u8 {
        match self {
            State::Ok => 0,
            State::Warn => 1,
            State::Fail => 2,
            State::Unknown => crate::report::EXIT_FAILURE,
        }
    }
}

/// One line of the findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at, such as `kvm`.
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// Why it matters.
    why: &'static str,
    /// The exact command or step that mends it; absent when nothing needs mending.
    fix: Option<String>,
}

/// The findings as data.
#[derive(Debug, Serialize)]
struct Findings<'a> {
    schema: u32,
    verdict: State,
    checks: &'a [Check],
}

/// Looks at the host and says what it found.
///
/// # Errors
/// None but a stdout that cannot be written; what a probe cannot find out is a finding.
pub fn run(args: DoctorArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let checks = judge::judge(&probe::probe(root));
    let verdict = verdict(&checks);
    match args.format {
        DoctorFormat::Table => print!("{}", table::table(&checks)),
        DoctorFormat::Json => {
            let findings = Findings { schema: 1, verdict, checks: &checks };
            println!("{}", serde_json::to_string_pretty(&findings)?);
        }
    }
    Ok(ExitCode::from(verdict.exit_code()))
}

/// The worst of all states.
fn verdict(checks: &[Check]) -> State {
    checks.iter().map(|check| check.state).max().unwrap_or(State::Ok)
}

#[cfg(test)]
mod tests;
