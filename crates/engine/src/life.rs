//! The life of a sandbox, as a machine of seven stages.
//!
//! ```text
//!   CREATED
//!      │ start       started          pause / resume
//!      ├──► CREATING ───────► RUNNING ◄──────────────► PAUSED
//!      │     │  ▲               │  │                     │
//!      │     │  │ start         │  └──── stop ──► STOPPING ◄── stop (it is resumed first)
//!      │     │  │               │                   │
//!      │     │  │               ▼ command ended, VM lost, killed
//!      │     │  └──────────── EXITED ◄──────────────┘
//!      ▼     ▼ failed           │
//!   REMOVING ◄──────────────────┘ remove
//!      │
//!      ▼
//!   (nothing)
//! ```
//!
//! The machine is pure: [`Stage::after`] says what follows, the monitor acts, and writes the stage
//! down before it acts on it. [`recovery`] says what a monitor has to do that finds a stage written
//! down by one that died: what was being made goes, what ran goes on, what was going goes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is written down; nothing of it is on the host.
    Created,
    /// It is being started; nobody was told yet that it runs.
    Creating,
    /// Its command runs.
    Running,
    /// Its VM stands still.
    Paused,
    /// It is being stopped.
    Stopping,
    /// Its command has ended, and its VM with it.
    Exited,
    /// It is being removed.
    Removing,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its command runs.
    Started,
    /// Its VM was stopped.
    Pause,
    /// Its VM goes on.
    Resume,
    /// Somebody wants its command to end.
    Stop,
    /// Its command has ended, or its VM was lost.
    Ended,
    /// It is to be started, for the first time or again.
    Start,
    /// Somebody wants it gone, or its making failed.
    Remove,
}

/// An event that cannot happen in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {} cannot take {event:?}", stage.name())]
pub struct Refused {
    /// The stage.
    pub stage: Stage,
    /// The event.
    pub event: Event,
}

impl Stage {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Creating,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Exited,
        Self::Removing,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    /// Whether its VM is there, paused or not.
    pub fn is_up(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Stopping => true,
            Self::Created | Self::Creating | Self::Exited | Self::Removing => false,
        }
    }

    /// The stage after the event.
    ///
    /// # Errors
    /// The event cannot happen here.
    pub fn after(self, event: Event) -> Result<Self, Refused> {
        let refused = Err(Refused { stage: self, event });
        match (self, event) {
            (Self::Created, Event::Start) => Ok(Self::Creating),
            (Self::Created, Event::Remove) => Ok(Self::Removing),
            (
                Self::Created,
                Event::Started | Event::Pause | Event::Resume | Event::Stop | Event::Ended,
            ) => refused,

            (Self::Creating, Event::Started) => Ok(Self::Running),
            (Self::Creating, Event::Ended) => Ok(Self::Exited),
            (Self::Creating, Event::Remove) => Ok(Self::Removing),
            (Self::Creating, Event::Pause | Event::Resume | Event::Stop | Event::Start) => refused,

            (Self::Running, Event::Pause) => Ok(Self::Paused),
            (Self::Running, Event::Resume) => Ok(Self::Running),
            (Self::Running, Event::Stop) => Ok(Self::Stopping),
            (Self::Running, Event::Ended) => Ok(Self::Exited),
            (Self::Running, Event::Remove) => Ok(Self::Removing),
            (Self::Running, Event::Started | Event::Start) => refused,

            (Self::Paused, Event::Pause) => Ok(Self::Paused),
            (Self::Paused, Event::Resume) => Ok(Self::Running),
            (Self::Paused, Event::Ended) => Ok(Self::Exited),
            (Self::Paused, Event::Remove) => Ok(Self::Removing),
            (Self::Paused, Event::Started | Event::Stop | Event::Start) => refused,

            (Self::Stopping, Event::Stop) => Ok(Self::Stopping),
            (Self::Stopping, Event::Ended) => Ok(Self::Exited),
            (Self::Stopping, Event::Remove) => Ok(Self::Removing),
            (Self::Stopping, Event::Started | Event::Pause | Event::Resume | Event::Start) => {
                refused
            }

            (Self::Exited, Event::Start) => Ok(Self::Creating),
            (Self::Exited, Event::Stop | Event::Ended) => Ok(Self::Exited),
            (Self::Exited, Event::Remove) => Ok(Self::Removing),
            (Self::Exited, Event::Started | Event::Pause | Event::Resume) => refused,

            (Self::Removing, Event::Remove | Event::Ended) => Ok(Self::Removing),
            (
                Self::Removing,
                Event::Started | Event::Pause | Event::Resume | Event::Stop | Event::Start,
            ) => refused,
        }
    }
}

/// What a monitor does that finds a sandbox whose monitor died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Take all of it away: nobody was told that it is there.
    Undo,
    /// Take the VM over and go on.
    Adopt,
    /// Write down that it was lost with its VM, and take away what is left of that.
    Bury,
    /// Take away what is left of the VM; how the command ended is known, or it never ran.
    Finish,
    /// Take away what is left of a start, and start it again.
    Start,
    /// Take away everything.
    Remove,
}

/// What is to be done, by the stage that was written down, whether the VM lives, and whether the sandbox
/// is to be there even if its start comes to nothing.
pub fn recovery(stage: Stage, vm_lives: bool, is_kept: bool) -> Recovery {
    match (stage, vm_lives, is_kept) {
        (Stage::Created, _, _) => Recovery::Finish,
        (Stage::Creating, _, false) => Recovery::Undo,
        (Stage::Creating, _, true) => Recovery::Start,
        (Stage::Running | Stage::Paused | Stage::Stopping, true, _) => Recovery::Adopt,
        (Stage::Running | Stage::Paused | Stage::Stopping, false, _) => Recovery::Bury,
        (Stage::Exited, _, _) => Recovery::Finish,
        (Stage::Removing, _, _) => Recovery::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Started,
        Event::Pause,
        Event::Resume,
        Event::Stop,
        Event::Ended,
        Event::Start,
        Event::Remove,
    ];

    #[test]
    fn everything_can_be_removed_and_nothing_comes_back_from_that() {
        for stage in Stage::ALL {
            assert_eq!(stage.after(Event::Remove), Ok(Stage::Removing));
        }
        for event in EVENTS {
            let after = Stage::Removing.after(event);
            assert!(after.is_err() || after == Ok(Stage::Removing), "{event:?}");
        }
    }

    #[test]
    fn a_command_ends_once_and_only_a_restart_begins_another() {
        for stage in Stage::ALL.into_iter().filter(|stage| stage.is_up()) {
            assert_eq!(stage.after(Event::Ended), Ok(Stage::Exited), "{stage:?}");
        }
        for event in EVENTS {
            let after = Stage::Exited.after(event);
            let is_up = after.is_ok_and(Stage::is_up);
            assert!(!is_up, "{event:?} brought an ended command back");
        }
        assert_eq!(Stage::Exited.after(Event::Start), Ok(Stage::Creating));
    }

    #[test]
    fn a_live_vm_is_taken_over_only_where_somebody_was_told_of_it() {
        for stage in Stage::ALL {
            for kept in [false, true] {
                let adopts = recovery(stage, true, kept) == Recovery::Adopt;
                let buries = recovery(stage, false, kept) == Recovery::Bury;
                assert_eq!((adopts, buries), (stage.is_up(), stage.is_up()), "{stage:?}");
            }
        }
    }
}
