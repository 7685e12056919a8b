//! Options of `coracle run` on the health of a detached command.

use clap::Args;
use coracle_engine::health::Check;

/// How it is found out whether the command is well.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health, with --detach")]
pub struct HealthOptions {
    /// A shell command in the container that succeeds while all is well; `ls` and `inspect` show it.
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Seconds between two checks.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    health_interval: u64,
    /// Seconds a check may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    health_timeout: u64,
    /// Failures in a row that make it unhealthy.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    health_retries: u32,
    /// Seconds after the start in which failures do not count.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    health_start_period: u64,
}

impl HealthOptions {
    /// The check, if there is to be one.
    pub fn check(&self) -> Option<Check> {
        let command = self.health_cmd.clone()?;
        Some(Check {
            command,
            interval: self.health_interval,
            timeout: self.health_timeout,
            retries: self.health_retries,
            start_period: self.health_start_period,
        })
    }
}
