//! When a lease is to be renewed (RFC 2131, 4.4.5).
//!
//! ```text
//!   leased ──T1──► its server is asked ──T2──► any server is asked ──end──► lost
//!      ▲                   │                          │                       │
//!      └───── answered ────┴──────────────────────────┘      asked anew ◄─────┘
//! ```

use std::time::{Duration, Instant};

/// Who is not answered asks again no sooner, but for what comes next by itself.
const LEAST_WAIT: Duration = Duration::from_secs(60);

/// A server that leases for less is taken to have meant this: renewing is not all there is to do.
const LEAST_LEASE: Duration = Duration::from_secs(4);

/// How long a lease is good, as its server put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From the question on, its server is asked.
    renew: Duration,
    /// Any server is.
    rebind: Duration,
    /// It is over.
    end: Duration,
}

impl Terms {
    /// In seconds, as in the options 51, 58 and 59; none for a lease without an end.
    pub fn of(lease: Option<u32>, renew: Option<u32>, rebind: Option<u32>) -> Option<Self> {
        let seconds = |n: u32| Duration::from_secs(n.into());
        let end = lease.filter(|seconds| *seconds != u32::MAX).map(seconds)?.max(LEAST_LEASE);
        let asked = renew.map(seconds).zip(rebind.map(seconds));
        let sane =
            asked.filter(|(renew, rebind)| *renew >= end / 8 && renew < rebind && *rebind < end);
        let (renew, rebind) = sane.unwrap_or((end / 2, end * 7 / 8));
        Some(Self { renew, rebind, end })
    }
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its server is asked.
    Renew,
    /// Any server is.
    Rebind,
    /// The address is no longer ours.
    Lost,
}

/// A lease and since when it runs.
#[derive(Debug, Clone, Copy)]
pub struct Tenure {
    since: Instant,
    terms: Terms,
}

impl Tenure {
    /// It runs since the question that was answered with it.
    pub fn new(since: Instant, terms: Terms) -> Self {
        Self { since, terms }
    }

    /// When something is due first.
    pub fn first(&self) -> Instant {
        self.since + self.terms.renew
    }

    /// What is due now, or is next.
    pub fn due(&self, now: Instant) -> Due {
        let age = now.saturating_duration_since(self.since);
        if age >= self.terms.end {
            Due::Lost
        } else if age >= self.terms.rebind {
            Due::Rebind
        } else {
            Due::Renew
        }
    }

    /// When to ask again after nobody answered: after half of what is left until something else is due.
    pub fn again(&self, now: Instant) -> Instant {
        let next = match self.due(now) {
            Due::Renew => self.since + self.terms.rebind,
            Due::Rebind | Due::Lost => self.since + self.terms.end,
        };
        let half = next.saturating_duration_since(now) / 2;
        next.min(now + half.max(LEAST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_server_that_says_little_means_half_and_seven_eighths() {
        let terms = Terms::of(Some(800), None, None).unwrap();
        assert_eq!(
            (terms.renew, terms.rebind, terms.end),
            (seconds(400), seconds(700), seconds(800))
        );
        assert_eq!(Terms::of(Some(800), Some(100), Some(200)).unwrap().renew, seconds(100));
        for odd in [(0, 700), (700, 100), (100, 800)] {
            assert_eq!(Terms::of(Some(800), Some(odd.0), Some(odd.1)), Some(terms), "{odd:?}");
        }
        assert_eq!(Terms::of(Some(0), None, None).unwrap().end, LEAST_LEASE);
        assert_eq!(Terms::of(Some(u32::MAX), None, None), None);
        assert_eq!(Terms::of(None, Some(1), Some(2)), None);
    }

    #[test]
    fn its_server_is_asked_first_then_any_then_it_is_lost() {
        let since = Instant::now();
        let tenure = Tenure::new(since, Terms::of(Some(800), None, None).unwrap());
        assert_eq!(tenure.first(), since + seconds(400));
        let steps = [(400, Due::Renew), (699, Due::Renew), (700, Due::Rebind), (800, Due::Lost)];
        for (age, due) in steps {
            assert_eq!(tenure.due(since + seconds(age)), due, "{age}");
        }
    }

    #[test]
    fn who_is_not_answered_waits_half_of_what_is_left_and_passes_no_step_over() {
        let since = Instant::now();
        let tenure = Tenure::new(since, Terms::of(Some(8000), None, None).unwrap());
        for (now, next) in [(4000, 5500), (6990, 7000), (7000, 7500), (7990, 8000), (9000, 8000)] {
            assert_eq!(tenure.again(since + seconds(now)), since + seconds(next), "{now}");
        }
    }
}
