//! Whether a command that has ended is started again, and when. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first pause before a restart; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);

/// When a command is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// Never.
    #[default]
    No,
    /// When it failed, so many times at the most; none: as often as it fails.
    OnFailure(Option<u32>),
    /// Always, also after a boot of the host.
    Always,
    /// Always, unless somebody has stopped it.
    UnlessStopped,
}

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is none of `no`, `on-failure[:TIMES]`, `always`, `unless-stopped`")]
pub struct NoPolicy {
    /// The text.
    pub text: String,
}

/// How a run of a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// With which code.
    pub code: u32,
    /// Somebody asked for it.
    pub was_stopped: bool,
    /// How often it was started again before.
    pub restarts: u32,
    /// The host has booted since, or the sandbox was taken up: `always` means always then.
    pub is_recovery: bool,
}

impl Policy {
    /// Whether it is started again after this end.
    pub fn restarts(self, ending: Ending) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => {
                let has_left = most.is_none_or(|most| ending.restarts < most);
                ending.code != 0 && !ending.was_stopped && has_left
            }
            Self::Always => !ending.was_stopped || ending.is_recovery,
            Self::UnlessStopped => !ending.was_stopped,
        }
    }

    /// How long to wait before that.
    pub fn pause(restarts: u32) -> Duration {
        FIRST.saturating_mul(2_u32.saturating_pow(restarts.min(20))).min(LONGEST)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl FromStr for Policy {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        match text {
            "no" => Ok(Self::No),
            "on-failure" => Ok(Self::OnFailure(None)),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            _ => {
                let times = text.strip_prefix("on-failure:").and_then(|times| times.parse().ok());
                let no = || NoPolicy { text: text.to_owned() };
                times.map(|times| Self::OnFailure(Some(times))).ok_or_else(no)
            }
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = NoPolicy;

    fn try_from(text: String) -> Result<Self, NoPolicy> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(code: u32) -> Ending {
        Ending { code, was_stopped: false, restarts: 0, is_recovery: false }
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:-1", "always:2"] {
            assert!(bad.parse::<Policy>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_failure_is_counted_and_a_success_is_an_end() {
        let twice = Policy::OnFailure(Some(2));
        assert!(twice.restarts(ending(1)));
        assert!(twice.restarts(Ending { restarts: 1, ..ending(1) }));
        assert!(!twice.restarts(Ending { restarts: 2, ..ending(1) }));
        assert!(!Policy::OnFailure(None).restarts(ending(0)));
        assert!(Policy::Always.restarts(ending(0)));
    }

    #[test]
    fn what_was_stopped_stays_so_but_for_always_after_a_boot() {
        let stopped = Ending { was_stopped: true, ..ending(143) };
        let booted = Ending { is_recovery: true, ..stopped };
        for policy in [Policy::OnFailure(None), Policy::Always, Policy::UnlessStopped] {
            assert!(!policy.restarts(stopped), "{policy}");
        }
        assert!(Policy::Always.restarts(booted) && !Policy::UnlessStopped.restarts(booted));
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        assert_eq!(Policy::pause(0), Duration::from_millis(100));
        assert_eq!(Policy::pause(3), Duration::from_millis(800));
        assert_eq!(Policy::pause(u32::MAX), Duration::from_secs(60));
    }
}
