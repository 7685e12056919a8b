//! Where the VM is in its life, shared by all who hold it or wait for it.
//!
//! One watched value: the state, how the VM ended, and whether the output handler is done. It is
//! made once with the VM and never replaced, so that whoever began to wait early learns of the
//! end all the same.

use coracle_vmm::ExitReason;
use tokio::sync::watch;

use crate::state::{Event, Refused, State};

/// The watched value.
#[derive(Debug, Clone)]
struct Now {
    state: State,
    exit: Option<ExitReason>,
    output_done: bool,
}

/// The shared life of a VM.
#[derive(Debug)]
pub(crate) struct Life(watch::Sender<Now>);

impl Life {
    /// A VM that was just created. `output` says whether output is to be waited for.
    pub(crate) fn created(output: bool) -> Self {
        let now = Now { state: State::Created, exit: None, output_done: !output };
        Self(watch::Sender::new(now))
    }

    /// A VM that was found running; what it says is nobody's any more.
    pub(crate) fn running() -> Self {
        Self(watch::Sender::new(Now { state: State::Running, exit: None, output_done: true }))
    }

    pub(crate) fn state(&self) -> State {
        self.0.borrow().state
    }

    /// How the VM ended, if it has.
    pub(crate) fn exit(&self) -> Option<ExitReason> {
        self.0.borrow().exit.clone()
    }

    /// Takes an event; nothing changes if it is refused.
    pub(crate) fn take(&self, event: Event) -> Result<State, Refused> {
        let mut outcome = Err(Refused { state: State::Closed, event });
        self.0.send_if_modified(|now| {
            outcome = now.state.after(event);
            let changed = outcome.is_ok_and(|state| state != now.state);
            if let Ok(state) = outcome {
                now.state = state;
            }
            changed
        });
        outcome
    }

    /// Records the end. The first reason stays. Reason and state change at once: whoever learns of
    /// the end finds the VM over.
    pub(crate) fn exited(&self, reason: ExitReason) {
        self.0.send_modify(|now| {
            now.exit.get_or_insert(reason);
            // Exits are taken in every state.
            now.state = now.state.after(Event::Exited).unwrap_or(now.state);
        });
    }

    pub(crate) fn output_done(&self) {
        self.0.send_modify(|now| now.output_done = true);
    }

    /// Until the VM has ended.
    pub(crate) async fn until_exit(&self) -> ExitReason {
        let now = self.until(|now| now.exit.is_some()).await;
        now.exit.unwrap_or(ExitReason::Killed)
    }

    /// Until the VM has ended and its output has been handled.
    pub(crate) async fn until_silent(&self) {
        self.until(|now| now.exit.is_some() && now.output_done).await;
    }

    /// Until the output has been handled.
    pub(crate) async fn until_output_done(&self) {
        self.until(|now| now.output_done).await;
    }

    /// Until somebody closes the VM.
    pub(crate) async fn until_closed(&self) {
        self.until(|now| now.state == State::Closed).await;
    }

    async fn until(&self, mut condition: impl FnMut(&Now) -> bool) -> Now {
        let mut watched = self.0.subscribe();
        match watched.wait_for(|now| condition(now)).await {
            Ok(now) => now.clone(),
            // We hold the sender, so it cannot be gone.
            Err(_) => self.0.borrow().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_number_of_waiters_learn_of_the_end_early_or_late() {
        let life = std::sync::Arc::new(Life::created(false));
        let early: Vec<_> = (0..5)
            .map(|_| {
                let life = life.clone();
                tokio::spawn(async move { life.until_exit().await })
            })
            .collect();
        life.exited(ExitReason::Shutdown);
        life.exited(ExitReason::Killed);
        for waiter in early {
            assert_eq!(waiter.await.unwrap(), ExitReason::Shutdown);
        }
        assert_eq!(life.until_exit().await, ExitReason::Shutdown);
        assert_eq!(life.state(), State::Exited);
    }

    #[tokio::test]
    async fn silence_needs_the_end_and_the_output() {
        let life = Life::created(true);
        life.exited(ExitReason::Shutdown);
        let silent =
            tokio::time::timeout(std::time::Duration::from_millis(20), life.until_silent());
        assert!(silent.await.is_err());
        life.output_done();
        life.until_silent().await;
    }

    #[test]
    fn whoever_learns_of_the_end_finds_the_vm_over() {
        for _ in 0..500 {
            let life = std::sync::Arc::new(Life::created(false));
            let watched = life.clone();
            let watcher = std::thread::spawn(move || {
                while watched.exit().is_none() {
                    std::hint::spin_loop();
                }
                watched.state()
            });
            life.exited(ExitReason::Killed);
            assert!(watcher.join().unwrap().is_over());
        }
    }

    #[test]
    fn a_refused_event_changes_nothing() {
        let life = Life::created(false);
        assert!(life.take(Event::Started).is_err());
        assert_eq!(life.state(), State::Created);
    }
}
