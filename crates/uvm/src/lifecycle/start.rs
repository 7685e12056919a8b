//! Start: power on, and see the guest up.
//!
//! ```text
//!   power on ─┬─ entropy: accept, feed, close ─┬─ bridge: accept, negotiate ── disks: mount ── running
//!             └─ log: accept, hand over ───────┘
//! ```
//!
//! Each wait is a race between the guest, the deadline of the whole start and the VM's own end.
//! A failure ends the VM, within a time of its own; so does a caller who gives up half-way,
//! through the watcher.

use std::sync::Arc;
use std::time::Duration;

use coracle_bridge::channel::ChannelListener;
use tokio::time::timeout;

use super::race::Race;
use super::{Listeners, Machine, UtilityVm, locked};
use crate::disks;
use crate::entropy;
use crate::errors::{Result, UvmError};
use crate::guest;
use crate::output;
use crate::state::Event;
use crate::timeline::Stage;

impl UtilityVm {
    /// Powers the VM on and returns when its guest takes requests and its cold disks are mounted.
    ///
    /// # Errors
    /// A second start, at once and without harm. Anything else that goes wrong ends the VM; of
    /// several reasons the time limit is named before the VM's own end, and that before a broken
    /// connection.
    #[doc(alias = "Start")]
    pub async fn start(&self) -> Result<()> {
        let machine = &self.machine;
        machine.life.take(Event::Start).map_err(|refused| UvmError::CannotStart {
            id: machine.id.clone(),
            state: refused.state,
        })?;
        let giving_up = GivingUp(Some(machine));
        let outcome = machine.power_on().await;
        if outcome.is_err() {
            machine.end_failed_start().await;
        }
        giving_up.nobody_did();
        outcome
    }
}

/// Tells the watcher to end the VM if the start is dropped half-way.
struct GivingUp<'a>(Option<&'a Machine>);

impl GivingUp<'_> {
    fn nobody_did(mut self) {
        self.0 = None;
    }
}

impl Drop for GivingUp<'_> {
    fn drop(&mut self) {
        if let Some(machine) = self.0 {
            machine.start_abandoned.notify_one();
        }
    }
}

impl Machine {
    async fn power_on(self: &Arc<Self>) -> Result<()> {
        let Listeners { entropy, log, bridge } = std::mem::take(&mut *locked(&self.listeners));
        let race = Race::new(self, self.host.start_timeout);
        if let Err(source) = race.run("power on", self.vm.resume()).await? {
            let cause = UvmError::PowerOn { id: self.id.clone(), source };
            return Err(race.blame("power on", cause).await);
        }
        self.clock.mark(Stage::PowerOn);
        tokio::try_join!(self.feed_entropy(&race, entropy), self.take_log(&race, log))?;
        if let Some(bridge) = bridge {
            self.connect(&race, bridge).await?;
            race.run("mount the disks", disks::mount_all(self)).await??;
            self.clock.mark(Stage::Disks);
        }
        self.note().await;
        match self.life.take(Event::Started) {
            Ok(_) => Ok(()),
            // The VM ended in this very moment, or somebody closed it.
            Err(_) => Err(race.exited("start", self.life.until_exit().await)),
        }
    }

    async fn feed_entropy(&self, race: &Race<'_>, listener: Option<ChannelListener>) -> Result<()> {
        let Some(listener) = listener else { return Ok(()) };
        let stream = race.io("failed to connect to entropy socket", listener.accept()).await?;
        self.clock.mark(Stage::Agent);
        race.io("failed to write entropy", entropy::feed(stream)).await
    }

    /// Hands the guest's output to its handler, on a task the machine owns.
    async fn take_log(
        self: &Arc<Self>,
        race: &Race<'_>,
        listener: Option<ChannelListener>,
    ) -> Result<()> {
        let Some(listener) = listener else { return Ok(()) };
        let stream = race.io("failed to connect to log socket", listener.accept()).await?;
        let over = OutputOver(self.clone());
        let handler = self.output_handler.clone();
        let task = tokio::spawn(async move {
            match handler {
                Some(handler) => handler.handle(stream).await,
                None => output::parse(stream, |entry| output::log(&over.0.id, &entry)).await,
            }
            drop(over);
        });
        *locked(&self.output) = Some(task);
        Ok(())
    }

    /// Logs what the guest says, connection after connection, until the VM ends.
    pub(super) fn take_log_again(self: &Arc<Self>, listener: ChannelListener) {
        let machine = self.clone();
        let task = tokio::spawn(async move {
            let handled = async {
                while let Ok(stream) = listener.accept().await {
                    output::parse(stream, |entry| output::log(&machine.id, &entry)).await;
                }
            };
            tokio::select! {
                () = handled => {}
                _ = machine.life.until_exit() => {}
            }
        });
        locked(&self.while_held).push(task.abort_handle());
    }

    /// Accepts the agent's one connection and agrees on a version with it.
    async fn connect(&self, race: &Race<'_>, listener: ChannelListener) -> Result<()> {
        let stream = race.io("failed to connect to GCS", listener.accept()).await?;
        self.clock.mark(Stage::Bridge);
        let negotiated = race.run("failed to connect to GCS", guest::connect(self, stream));
        match negotiated.await? {
            Ok(connection) => {
                self.remember(connection);
                self.clock.mark(Stage::Ready);
                Ok(())
            }
            Err(error) => {
                Err(race.blame("failed to connect to GCS", UvmError::Handshake(error)).await)
            }
        }
    }

    /// Ends the VM whose start failed, within a time of its own: the start's may have run out.
    async fn end_failed_start(&self) {
        self.end_vm(self.host.cleanup_timeout).await;
        self.release_guest();
        self.no_output_will_come();
        // Taken in every state a failed start can be in.
        let _ = self.life.take(Event::StartFailed);
    }

    /// If the output handler was never called, nobody shall wait for it.
    pub(super) fn no_output_will_come(&self) {
        if locked(&self.output).is_none() {
            self.life.output_done();
        }
    }

    /// Kills the VM and waits until it is gone; says whether it is.
    pub(super) async fn end_vm(&self, limit: Duration) -> bool {
        let ended = timeout(limit, async {
            let killed = self.vm.kill().await;
            if let Err(error) = &killed {
                tracing::error!(vm = self.id, %error, "cannot kill the VM");
            }
            self.life.exited(self.vm.wait().await);
        });
        ended.await.is_ok()
    }
}

/// Fires when the output handler is done, however it ended.
struct OutputOver(Arc<Machine>);

impl Drop for OutputOver {
    fn drop(&mut self) {
        self.0.life.output_done();
    }
}
