//! Whether a command that runs does what it is there for. Pure.
//!
//! ```text
//!   STARTING ──success──► HEALTHY ──retries failures in a row──► UNHEALTHY
//!      │                    ▲                                        │
//!      │ retries failures   └──────────────── success ───────────────┘
//!      └─────────────────────────────────────────────────────────────►
//! ```

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How it is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A shell command in the container; it succeeds when all is well.
    pub command: String,
    /// Seconds between two checks.
    pub interval: u64,
    /// Seconds a check may take; one that takes longer has failed.
    pub timeout: u64,
    /// Failures in a row after which it is unhealthy.
    pub retries: u32,
    /// Seconds after the start in which failures do not count.
    pub start_period: u64,
}

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check has succeeded yet.
    Starting,
    /// The last one did, or too few have failed since.
    Healthy,
    /// So many have failed in a row.
    Unhealthy,
}

impl Health {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The course of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// What is known now.
    pub health: Health,
    /// Failures in a row.
    failures: u32,
}

impl Course {
    /// Goes on from what was known.
    pub fn from(health: Health) -> Self {
        Self { health, failures: 0 }
    }

    /// After one more check, so long after the start.
    #[must_use]
    pub fn after(self, succeeded: bool, check: &Check, since_start: Duration) -> Self {
        if succeeded {
            return Self { health: Health::Healthy, failures: 0 };
        }
        let is_early = since_start < Duration::from_secs(check.start_period);
        if self.health == Health::Starting && is_early {
            return self;
        }
        let failures = self.failures.saturating_add(1);
        let health = if failures >= check.retries.max(1) { Health::Unhealthy } else { self.health };
        Self { health, failures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check { command: "true".into(), interval: 1, timeout: 1, retries: 2, start_period: 10 }
    }

    fn course(outcomes: &[(bool, u64)]) -> Health {
        let begin = Course::from(Health::Starting);
        let step = |course: Course, (ok, at): &(bool, u64)| {
            course.after(*ok, &check(), Duration::from_secs(*at))
        };
        outcomes.iter().fold(begin, step).health
    }

    #[test]
    fn failures_count_in_a_row_and_not_while_it_starts() {
        assert_eq!(course(&[(false, 1), (false, 2), (false, 3)]), Health::Starting);
        assert_eq!(course(&[(false, 11), (false, 12)]), Health::Unhealthy);
        assert_eq!(course(&[(true, 1), (false, 2)]), Health::Healthy);
        assert_eq!(course(&[(true, 1), (false, 2), (false, 3)]), Health::Unhealthy);
        assert_eq!(course(&[(true, 1), (false, 2), (true, 3), (false, 4)]), Health::Healthy);
        assert_eq!(course(&[(false, 20), (false, 21), (true, 22)]), Health::Healthy);
    }
}
