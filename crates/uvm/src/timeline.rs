//! When each step of a boot happened. Always recorded: a dozen bytes a step cost nothing, and the
//! boot one wants to explain is the one that is over.

use std::sync::Mutex;
use std::time::Instant;

/// A step on the way from nothing to a VM that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Create was called.
    Create,
    /// The machine monitor's process is about to be spawned.
    Spawn,
    /// The machine monitor answers on its control socket.
    Monitor,
    /// Somebody carries the channel.
    Channel,
    /// The processors run.
    PowerOn,
    /// The agent asked for its entropy: firmware and kernel are done.
    Agent,
    /// The agent dialled the bridge.
    Bridge,
    /// The versions agree; the guest takes requests.
    Ready,
    /// The disks that were there from power-on are mounted.
    Disks,
}

impl Stage {
    /// The stage in a word, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Spawn => "spawn",
            Self::Monitor => "monitor",
            Self::Channel => "channel",
            Self::PowerOn => "power-on",
            Self::Agent => "agent",
            Self::Bridge => "bridge",
            Self::Ready => "ready",
            Self::Disks => "disks",
        }
    }
}

/// When each stage was reached, in order. Stages that were not reached, or that this VM has not,
/// are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The stages reached so far.
    pub marks: Vec<(Stage, Instant)>,
}

impl Timeline {
    /// When a stage was reached.
    pub fn at(&self, stage: Stage) -> Option<Instant> {
        self.marks.iter().find(|(reached, _)| *reached == stage).map(|(_, at)| *at)
    }
}

/// The timeline while it is written.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Timeline>);

impl Clock {
    /// The stage is reached now.
    pub(crate) fn mark(&self, stage: Stage) {
        self.timeline(|timeline| timeline.marks.push((stage, Instant::now())));
    }

    /// What has been written so far.
    pub(crate) fn read(&self) -> Timeline {
        self.timeline(|timeline| timeline.clone())
    }

    fn timeline<T>(&self, act: impl FnOnce(&mut Timeline) -> T) -> T {
        // A list that somebody panicked over is still a list.
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_keep_their_order_and_their_instants() {
        let clock = Clock::default();
        clock.mark(Stage::Create);
        clock.mark(Stage::PowerOn);
        let timeline = clock.read();
        assert!(timeline.at(Stage::Create) <= timeline.at(Stage::PowerOn));
        assert_eq!(timeline.at(Stage::Ready), None);
        assert_eq!(timeline.marks.len(), 2);
    }
}
