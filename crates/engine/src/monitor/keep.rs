//! From the moment a sandbox runs until its command has ended: what may end it, and what is done then.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{DRAIN, Ended, Monitor, UNKNOWN, output};
use crate::error::Error;
use crate::further::KILLED;
use crate::life::{Event, Stage};
use crate::record::{SandboxRecord, now};
use crate::recover;
use crate::root::Root;

/// How long to wait until the disk is tried again for what must be written down.
const RETRY: Duration = Duration::from_secs(1);

/// How the command's run came to its end.
#[derive(Debug)]
enum End {
    /// By itself or by a signal, with this code; until when others may take to end, if it was asked to.
    Exited(u32, Option<Instant>),
    /// With its VM.
    Lost(String),
    /// Somebody removes the sandbox.
    Removed,
    /// It did not: a fresh monitor is to go on.
    GoesOn,
}

impl Monitor {
    /// Sees the sandbox to its end.
    pub(super) async fn keep(
        &self,
        root: &Root,
        cancel: &CancellationToken,
        mut output: output::Recording,
    ) -> Result<Ended, Error> {
        let (code, reason) = match self.until_end(cancel).await {
            End::GoesOn => return Ok(Ended::Again),
            End::Removed => (KILLED, None),
            End::Lost(reason) => (UNKNOWN, Some(reason)),
            End::Exited(code, until) => {
                output.finish(DRAIN).await;
                // Whoever was asked to end with it may do so, in the time that is left.
                tokio::select! {
                    () = self.containers.all_over(until.unwrap_or_else(Instant::now)) => {}
                    () = self.remove.cancelled() => {}
                }
                (code, None)
            }
        };
        self.write_down_end(code, reason).await;
        if !self.remove.is_cancelled() {
            // Now there is room, or there never will be.
            output.settle(DRAIN).await;
        }
        self.ending.cancel();
        self.sandbox.container_ended();
        let closed = self.sandbox.release().await;
        self.stage.send_replace(Stage::Exited);
        self.exit.send_replace(Some(code));
        self.containers.all_ended(KILLED);
        closed?;
        let remove = self.remove.is_cancelled() || self.ledger.look(|record| record.order.remove);
        if remove {
            recover::forget(root, self.sandbox.name())?;
        } else {
            self.ledger.update(|record| record.vm = None).await?;
        }
        Ok(Ended::Over)
    }

    /// Writes down how the command ended, before anything is taken away of what knows it. A full disk
    /// is waited for.
    async fn write_down_end(&self, code: u32, reason: Option<String>) {
        let ended = now();
        let is_removed = self.remove.is_cancelled();
        loop {
            let (ended, reason) = (ended.clone(), reason.clone());
            let over = move |record: &mut SandboxRecord| {
                let event = if is_removed { Event::Remove } else { Event::Ended };
                record.stage = record.stage.after(event).unwrap_or(record.stage);
                record.exit_code = Some(code);
                record.ended = Some(ended);
                record.reason = reason;
                record.end_containers("its sandbox ended");
            };
            let Err(error) = self.ledger.update(over).await else { return };
            tracing::error!(
                code,
                error = &error as &dyn std::error::Error,
                "cannot write down the end"
            );
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // Nobody wants to know any more.
                () = self.remove.cancelled() => return,
            }
        }
    }

    /// Waits for the command's end, and brings it about when somebody asks.
    async fn until_end(&self, cancel: &CancellationToken) -> End {
        const TERM: i32 = 15;
        let mut stop = self.stop.subscribe();
        // One that a former monitor was asked for is still to be brought about.
        stop.mark_changed();
        let mut patience = None;
        loop {
            let expired = async {
                match patience {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = self.init.wait() => match exit {
                    Ok(code) => return End::Exited(code, patience),
                    Err(_) if self.init.is_cut_off().await => return End::GoesOn,
                    Err(error) => {
                        let why = std::error::Error::source(&error).map(ToString::to_string);
                        return End::Lost(why.unwrap_or_else(|| error.to_string()));
                    }
                },
                Ok(()) = stop.changed() => {
                    let Some(limit) = *stop.borrow_and_update() else { continue };
                    patience = Some(Instant::now() + limit);
                    if let Err(error) = self.init.signal(TERM).await {
                        tracing::warn!(%error, "cannot ask the command to end");
                    }
                    self.containers.signal_all(TERM).await;
                }
                () = expired => {
                    patience = None;
                    if let Err(error) = self.init.kill().await {
                        tracing::warn!(%error, "cannot kill the command");
                        return End::Lost("it could not be killed".to_owned());
                    }
                }
                () = self.remove.cancelled() => return End::Removed,
                () = cancel.cancelled() => return End::GoesOn,
            }
        }
    }
}
