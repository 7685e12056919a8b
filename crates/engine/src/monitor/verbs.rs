//! What requests have a monitor do with its sandbox, and what each stage allows.

use std::time::Duration;

use super::Monitor;
use super::api::SandboxView;
use crate::error::Error;
use crate::life::{Event, Stage};
use crate::record::SandboxRecord;
use crate::sandbox::Sandbox;
use crate::update::Update;

impl Monitor {
    /// Asks for the command's end, written down first: a fresh monitor goes on with it. What cannot be
    /// written down is done all the same: whoever stops a sandbox may do so because the disk is full.
    pub(super) async fn ask_to_stop(&self, limit: Duration) -> Result<(), Error> {
        let seconds = limit.as_secs();
        let moved = self.move_to(Event::Stop, move |record| record.patience = Some(seconds)).await;
        match moved {
            Err(error @ Error::State { .. }) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot write down that it is to stop");
                self.ledger.amend(|record| {
                    (record.stage, record.patience) = (Stage::Stopping, Some(seconds));
                });
                self.stage.send_replace(Stage::Stopping);
            }
            other => other?,
        }
        self.stop.send_replace(Some(limit));
        Ok(())
    }

    /// Writes down a change of stage, and makes it. What is written down decides: the command may just
    /// have ended.
    pub(super) async fn move_to(
        &self,
        event: Event,
        change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
    ) -> Result<(), Error> {
        let not_running = || Error::NotRunning { name: self.sandbox.name().to_owned() };
        let wanted = self.stage.borrow().after(event).map_err(|_| not_running())?;
        let moved = move |record: &mut SandboxRecord| {
            if let Ok(next) = record.stage.after(event) {
                record.stage = next;
                change(record);
            }
        };
        let before = self.ledger.look(|record| record.stage);
        if let Err(error) = self.ledger.update(moved).await {
            self.ledger.amend(|record| record.stage = before);
            return Err(error);
        }
        if self.ledger.look(|record| record.stage) != wanted {
            return Err(not_running());
        }
        self.stage.send_replace(wanted);
        Ok(())
    }

    /// The sandbox, if its VM is up, paused or not.
    pub(super) fn alive(&self) -> Result<&Sandbox, Error> {
        match *self.stage.borrow() {
            Stage::Running | Stage::Paused | Stage::Stopping => Ok(&self.sandbox),
            Stage::Created | Stage::Creating | Stage::Exited | Stage::Removing => {
                Err(Error::NotRunning { name: self.sandbox.name().to_owned() })
            }
        }
    }

    /// The sandbox, if its guest can be asked.
    pub(super) fn live(&self) -> Result<&Sandbox, Error> {
        match *self.stage.borrow() {
            Stage::Running | Stage::Stopping => Ok(&self.sandbox),
            Stage::Paused => Err(Error::Paused { name: self.sandbox.name().to_owned() }),
            Stage::Created | Stage::Creating | Stage::Exited | Stage::Removing => {
                Err(Error::NotRunning { name: self.sandbox.name().to_owned() })
            }
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        *self.stage.borrow() == Stage::Paused
    }

    /// Pauses the VM, or lets it go on. One that is being stopped is not paused any more.
    pub(super) async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        let sandbox = self.alive()?;
        if *self.stage.borrow() == Stage::Stopping {
            return Err(Error::NotRunning { name: sandbox.name().to_owned() });
        }
        // Written down first: that is how a fresh monitor makes it.
        let event = if paused { Event::Pause } else { Event::Resume };
        self.move_to(event, |_| {}).await?;
        if let Err(error) = sandbox.set_paused(paused).await {
            let undo = if paused { Event::Resume } else { Event::Pause };
            self.move_to(undo, |_| {}).await?;
            return Err(error);
        }
        Ok(())
    }

    pub(super) async fn update(&self, update: &Update) -> Result<(), Error> {
        self.live()?.update(update).await
    }

    pub(super) fn view(&self) -> SandboxView {
        let mut view = self.ledger.look(SandboxRecord::view);
        view.state = *self.stage.borrow();
        view.exit_code = *self.exit.borrow();
        view.plugs = self.sandbox.plugs().list();
        view.networks = self.sandbox.networks().list();
        view
    }
}
