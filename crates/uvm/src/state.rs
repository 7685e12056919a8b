//! The life of a utility VM, as a machine of five states.
//!
//! ```text
//!            create            start                 handshake              exit, terminate
//!   (none) ---------> CREATED --------> STARTING ------------> RUNNING ---------------------> EXITED
//!                      |   |              |   \                  |                            ^  |
//!                      |   +-- exit ------|----\-----------------|----------------------------+  |
//!                      |                  |     +-- failure (VM killed) ----------------------+  |
//!                    close              close                  close                           close
//!                      |                  |                      |                               |
//!                      +------------------+----> CLOSED <--------+-------------------------------+
//! ```
//!
//! The machine is pure: [`State::after`] says what follows, the callers act. A VM is started at
//! most once. A VM that ends by itself while it is being started is `Exited` at once, and the
//! start that was under way then learns that it has failed. Nothing leaves `Closed`.

use std::fmt;

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It exists, its processors stand still.
    Created,
    /// It is powered on, the guest has not been heard yet.
    Starting,
    /// The guest answers.
    Running,
    /// It is over, by itself or on request.
    Exited,
    /// Nothing of it is left on the host.
    Closed,
}

/// What happens to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody asks for a start.
    Start,
    /// The start went through.
    Started,
    /// The start failed, and the VM was ended.
    StartFailed,
    /// The VM ended, for whatever reason.
    Exited,
    /// Somebody closes it.
    Close,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a VM that is {state} cannot take {event:?}")]
pub struct Refused {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

impl State {
    /// The state after the event.
    ///
    /// # Errors
    /// The event cannot happen here: a second start, an end of a start that is not under way.
    pub fn after(self, event: Event) -> Result<Self, Refused> {
        let refused = Err(Refused { state: self, event });
        match (self, event) {
            (Self::Created, Event::Start) => Ok(Self::Starting),
            (Self::Created, Event::Started | Event::StartFailed) => refused,
            (Self::Created, Event::Exited) => Ok(Self::Exited),
            (Self::Created, Event::Close) => Ok(Self::Closed),

            (Self::Starting, Event::Start) => refused,
            (Self::Starting, Event::Started) => Ok(Self::Running),
            (Self::Starting, Event::StartFailed | Event::Exited) => Ok(Self::Exited),
            (Self::Starting, Event::Close) => Ok(Self::Closed),

            (Self::Running, Event::Start | Event::Started | Event::StartFailed) => refused,
            (Self::Running, Event::Exited) => Ok(Self::Exited),
            (Self::Running, Event::Close) => Ok(Self::Closed),

            (Self::Exited, Event::Start | Event::Started) => refused,
            (Self::Exited, Event::StartFailed | Event::Exited) => Ok(Self::Exited),
            (Self::Exited, Event::Close) => Ok(Self::Closed),

            (Self::Closed, Event::Start | Event::Started) => refused,
            (Self::Closed, Event::StartFailed | Event::Exited | Event::Close) => Ok(Self::Closed),
        }
    }

    /// Whether the VM has ended.
    pub fn is_over(self) -> bool {
        match self {
            Self::Created | Self::Starting | Self::Running => false,
            Self::Exited | Self::Closed => true,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Closed => "closed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [State; 5] =
        [State::Created, State::Starting, State::Running, State::Exited, State::Closed];
    const EVENTS: [Event; 5] =
        [Event::Start, Event::Started, Event::StartFailed, Event::Exited, Event::Close];

    #[test]
    fn a_vm_lives_from_created_to_closed() {
        let events = [Event::Start, Event::Started, Event::Exited, Event::Close];
        let mut state = State::Created;
        let mut seen = vec![state];
        for event in events {
            state = state.after(event).unwrap();
            seen.push(state);
        }
        assert_eq!(seen, STATES);
    }

    #[test]
    fn close_is_possible_everywhere_and_final() {
        for state in STATES {
            assert_eq!(state.after(Event::Close), Ok(State::Closed));
        }
        for event in EVENTS {
            assert!(
                State::Closed.after(event).is_err()
                    || State::Closed.after(event) == Ok(State::Closed)
            );
        }
    }

    #[test]
    fn a_second_start_is_refused_everywhere() {
        for state in STATES {
            assert_eq!(state.after(Event::Start).is_ok(), state == State::Created);
        }
    }

    #[test]
    fn a_start_that_went_through_after_the_vm_exited_is_refused() {
        assert!(State::Exited.after(Event::Started).is_err());
    }

    fn rank(state: State) -> usize {
        STATES.iter().position(|s| *s == state).unwrap()
    }

    proptest! {
        #[test]
        fn life_only_goes_forward(events in prop::collection::vec(prop::sample::select(&EVENTS[..]), 0..40)) {
            let mut state = State::Created;
            let mut starts = 0;
            for event in events {
                let Ok(next) = state.after(event) else { continue };
                prop_assert!(rank(next) >= rank(state));
                prop_assert!(!state.is_over() || next.is_over());
                starts += usize::from(event == Event::Start);
                state = next;
            }
            prop_assert!(starts <= 1);
        }
    }
}
