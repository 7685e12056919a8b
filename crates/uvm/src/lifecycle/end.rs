//! Terminate, wait and close.
//!
//! Close takes everything down in one order, from any state, as often as it is called: the VM,
//! the guest connection, the sockets nobody will dial any more, the output handler (which sees
//! its end now at the latest), the keeper, the folder. Each step has a time of its own, none of
//! them a caller's.

use std::sync::Arc;
use std::time::Duration;

use coracle_vmm::cgroup;
use tokio::time::timeout;

use super::{Listeners, Machine, UnexpectedExit, UtilityVm, locked};
use crate::errors::{Result, UvmError};
use crate::state::{Event, State};

/// How long the output handler may take to read what a dead guest left it, before the channel is
/// taken from under it.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl UtilityVm {
    /// Ends the VM at once. Ending a VM that has ended, or was closed, succeeds.
    ///
    /// # Errors
    /// The machine monitor cannot be ended.
    #[doc(alias = "Terminate")]
    pub async fn terminate(&self) -> Result<()> {
        let machine = &self.machine;
        if machine.life.state().is_over() && machine.life.exit().is_some() {
            return Ok(());
        }
        machine
            .vm
            .kill()
            .await
            .map_err(|source| UvmError::Terminate { id: machine.id.clone(), source })?;
        machine.life.until_exit().await;
        Ok(())
    }

    /// Stops the VM's processors; memory and devices stay as they are. The guest does not notice but
    /// by its clock, and answers nothing meanwhile. Pausing a paused VM changes nothing.
    ///
    /// # Errors
    /// The VM does not run; the machine monitor refuses.
    pub async fn pause(&self) -> Result<()> {
        self.running("pause")?;
        let id = self.machine.id.clone();
        let paused = self.machine.vm.pause().await;
        paused.map_err(|source| UvmError::Processors { operation: "pause", id, source })
    }

    /// Lets a paused VM go on. Resuming one that runs changes nothing.
    ///
    /// # Errors
    /// As [`UtilityVm::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.running("resume")?;
        let id = self.machine.id.clone();
        let resumed = self.machine.vm.resume().await;
        resumed.map_err(|source| UvmError::Processors { operation: "resume", id, source })
    }

    fn running(&self, operation: &'static str) -> Result<()> {
        let (id, state) = (self.machine.id.clone(), self.machine.life.state());
        if state == State::Running {
            Ok(())
        } else {
            Err(UvmError::NotRunning { operation, id, state })
        }
    }

    /// Waits until the VM has ended and the output handler has taken all it said. Any number of
    /// callers, at any time; a VM that was not started yet is waited for too. How it ended is for
    /// [`UtilityVm::exit_error`] to say.
    #[doc(alias = "Wait")]
    pub async fn wait(&self) {
        self.machine.life.until_silent().await;
    }

    /// Whether the VM ended as it should: shut down by its guest or terminated by us.
    ///
    /// # Errors
    /// [`UvmError::NotExited`] before the end; [`UvmError::UnexpectedExit`] after one nobody
    /// asked for.
    #[doc(alias = "ExitError")]
    pub fn exit_error(&self) -> Result<()> {
        match self.machine.life.exit() {
            None => Err(UvmError::NotExited),
            Some(reason) if reason.is_expected() => Ok(()),
            Some(reason) => Err(UnexpectedExit(reason).into()),
        }
    }

    /// Ends the VM and takes away everything that was made for it. Works from every state and
    /// any number of times; calls that come together wait for the same one.
    ///
    /// # Errors
    /// The VM cannot be ended. What else could be taken away is gone; closing again tries again.
    #[doc(alias = "Close")]
    pub async fn close(&self) -> Result<()> {
        self.machine.close().await
    }
}

impl Machine {
    /// Closes on a task of its own, so that a caller who gives up leaves nothing half-closed.
    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        // Close is taken in every state.
        let _ = self.life.take(Event::Close);
        let close = || async {
            let machine = self.clone();
            let down = tokio::spawn(async move { machine.take_down().await });
            let alive = || UvmError::StillAlive { id: self.id.clone() };
            down.await.map_err(|_| alive())?.then_some(()).ok_or_else(alive)
        };
        self.closed.get_or_try_init(close).await.copied()
    }

    /// Says whether the VM is gone.
    async fn take_down(&self) -> bool {
        let gone = self.end_vm(self.host.cleanup_timeout).await;
        self.release_guest();
        *locked(&self.listeners) = Listeners::default();
        self.no_output_will_come();
        let _ = timeout(LAST_WORDS, self.life.until_output_done()).await;
        self.stop_servers().await;
        self.stop_vsock().await;
        if gone {
            self.give_devices_back().await;
        }
        let keeper = locked(&self.keeper).take();
        if let Some(keeper) = keeper {
            keeper.stop(&self.channel, self.host.cleanup_timeout).await;
        }
        self.finish_output().await;
        if gone {
            self.leave_cgroup();
        }
        // One that is not gone is reached through it, at the next try.
        if gone && let Some(run_dir) = locked(&self.run_dir).take() {
            run_dir.remove();
        }
        gone
    }

    /// The VM's control group goes when the last of its processes has.
    fn leave_cgroup(&self) {
        if let Some(group) = &self.vm.identity().cgroup
            && let Err(error) = cgroup::remove(group)
        {
            tracing::warn!(group = %group.display(), %error, "a control group stays");
        }
    }

    /// With the channel gone the handler has read its end; one that goes on all the same is cut.
    async fn finish_output(&self) {
        let Some(mut task) = locked(&self.output).take() else { return };
        if timeout(self.host.cleanup_timeout, &mut task).await.is_err() {
            tracing::warn!(vm = self.id, "the output handler did not end with its VM");
            task.abort();
            let _ = task.await;
        }
    }

    /// Everybody who waits for the guest learns that it is gone.
    pub(super) fn release_guest(&self) {
        if let Some(guest) = locked(&self.guest).take() {
            guest.close();
        }
    }
}
