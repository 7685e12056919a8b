//! Faults on purpose.
//!
//! Every request that changes something in the guest is one effect, counted from 1. The n-th can
//! fail, or the guest can die in its place, as a kernel panic would end a VM.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_bridge::server::ServiceError;

/// The exit status of a guest that died on purpose; to the fake VM it is a panic.
const DEATH: i32 = 101;

/// Counts effects and knows which one goes wrong.
#[derive(Debug, Default)]
pub struct Effects {
    count: AtomicU64,
    /// This one fails, once.
    pub fail_at: Option<u64>,
    /// The guest dies at this one.
    pub die_at: Option<u64>,
}

impl Effects {
    /// As `CORACLE_FAKE_FAIL_AT` and `CORACLE_FAKE_DIE_AT` say, where there is no command line to
    /// write on.
    pub fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok()?.parse().ok();
        Self {
            count: AtomicU64::new(0),
            fail_at: number("CORACLE_FAKE_FAIL_AT"),
            die_at: number("CORACLE_FAKE_DIE_AT"),
        }
    }

    /// To be called before the effect `name` takes place.
    pub fn reach(&self, name: &str) -> Result<(), ServiceError> {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if self.die_at == Some(number) {
            eprintln!("coracle-guest fake: dying at effect {number}, {name}");
            process::exit(DEATH);
        }
        if self.fail_at == Some(number) {
            return Err(ServiceError::failed(format!("effect {number}, {name}, fails on purpose")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_effect_fails() {
        let effects = Effects { fail_at: Some(2), ..Effects::default() };
        assert!(effects.reach("first").is_ok());
        assert!(effects.reach("second").unwrap_err().message.contains("second"));
        assert!(effects.reach("third").is_ok());
    }
}
