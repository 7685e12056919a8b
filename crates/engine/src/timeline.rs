//! When each phase of a sandbox's start was reached.
//!
//! Always recorded: seven instants cost nothing, and the run one wants to know about
//! is the one that is over.

use std::time::{Duration, Instant};

use serde::Serialize;

/// The phases in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// The VM's process is about to be started; images are ready.
    #[serde(rename = "spawn")]
    Spawn,
    /// The agent took the channel: firmware and kernel are done.
    #[serde(rename = "firmware+kernel")]
    Kernel,
    /// Host and agent agreed on a protocol version.
    #[serde(rename = "agent")]
    Agent,
    /// The root file system is mounted.
    #[serde(rename = "rootfs")]
    Rootfs,
    /// The container's command was started.
    #[serde(rename = "container")]
    Container,
    /// The command wrote its first byte.
    #[serde(rename = "first byte")]
    FirstByte,
    /// The command ended.
    #[serde(rename = "exit")]
    Exit,
}

impl Phase {
    /// The name people see.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Spawn => "spawn",
            Phase::Kernel => "firmware+kernel",
            Phase::Agent => "agent",
            Phase::Rootfs => "rootfs",
            Phase::Container => "container",
            Phase::FirstByte => "first byte",
            Phase::Exit => "exit",
        }
    }
}

/// A phase and when it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mark {
    /// Which one.
    pub phase: Phase,
    /// Milliseconds since the command began.
    pub at_ms: f64,
    /// Milliseconds since the phase before.
    pub took_ms: f64,
}

/// The instants of one sandbox.
#[derive(Debug, Clone)]
pub struct Timeline {
    began: Instant,
    reached: Vec<(Phase, Instant)>,
}

impl Timeline {
    /// A timeline that began at `began`.
    pub fn since(began: Instant) -> Self {
        Timeline { began, reached: Vec::new() }
    }

    /// Notes that `phase` is reached now.
    pub fn reach(&mut self, phase: Phase) {
        self.reach_at(phase, Instant::now());
    }

    /// Notes when `phase` was reached; the first time counts.
    pub fn reach_at(&mut self, phase: Phase, at: Instant) {
        if !self.reached.iter().any(|(p, _)| *p == phase) {
            self.reached.push((phase, at));
        }
    }

    /// All phases reached, in the order of time.
    pub fn marks(&self) -> Vec<Mark> {
        let mut reached = self.reached.clone();
        reached.sort_by_key(|(_, at)| *at);
        let ms = |d: Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
        let mut before = self.began;
        reached
            .into_iter()
            .map(|(phase, at)| {
                let took = at.saturating_duration_since(std::mem::replace(&mut before, at));
                let since = at.saturating_duration_since(self.began);
                Mark { phase, at_ms: ms(since), took_ms: ms(took) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_in_order_and_add_up() {
        let began = Instant::now();
        let after = |ms| began + Duration::from_millis(ms);
        let mut timeline = Timeline::since(began);
        timeline.reach_at(Phase::Agent, after(30));
        timeline.reach_at(Phase::Spawn, after(10));
        timeline.reach_at(Phase::Spawn, after(99)); // the first time counts
        let marks = timeline.marks();
        assert_eq!(marks[0], Mark { phase: Phase::Spawn, at_ms: 10.0, took_ms: 10.0 });
        assert_eq!(marks[1], Mark { phase: Phase::Agent, at_ms: 30.0, took_ms: 20.0 });
    }

    #[test]
    fn names_in_text_and_json_agree() {
        for phase in [Phase::Spawn, Phase::Kernel, Phase::FirstByte, Phase::Exit] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
