//! The further containers of a sandbox, each with a task that sees it to its end.
//!
//! ```text
//!   start:  name reserved ─► [written down] ─► image, container, command ─► [written down: it runs]
//!   end:    command ended ─► [written down: its code] ─► out of the VM ─► [written down, or forgotten]
//! ```
//!
//! A monitor that takes over goes on with those that run, takes away those that were being made, and
//! finishes with those whose end is written down.

mod adopt;
mod end;
mod start;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_uvm::container::Container;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::{Command, ContainerView};
use super::execs::Exec;
use super::input::InputDesk;
use super::streams::{self, Opened};
use super::{Monitor, UNKNOWN};
use crate::error::Error;
use crate::further::FurtherRecord;
use crate::process::Process;
use crate::record::ContainerRecord;
use crate::sandbox::Sandbox;

pub(in crate::monitor) use adopt::adopt;
pub(in crate::monitor) use start::start;

/// The further containers that have something in the VM.
#[derive(Debug, Default)]
pub(super) struct Containers {
    table: Mutex<BTreeMap<String, Slot>>,
}

#[derive(Debug)]
enum Slot {
    /// Being made.
    Coming,
    There(Arc<Further>),
}

/// A further container that runs, or ran until a moment ago.
#[derive(Debug)]
pub(super) struct Further {
    there: ContainerRecord,
    container: Container,
    init: Init,
    exit: watch::Sender<Option<u32>>,
    /// Somebody wants it removed.
    remove: CancellationToken,
    /// Nothing of it is in the VM any more.
    gone: CancellationToken,
}

/// The command a container began with.
#[derive(Debug)]
enum Init {
    /// Its output goes to a log, its input comes from whoever is attached.
    Logged(Box<Process>, InputDesk),
    /// Its streams are its caller's.
    Streamed(Arc<Exec>),
}

impl Containers {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Slot>> {
        // Each change is one call.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &str) -> Option<Arc<Further>> {
        match self.table().get(name) {
            Some(Slot::There(further)) => Some(further.clone()),
            Some(Slot::Coming) | None => None,
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Further>> {
        let there = |slot: &Slot| match slot {
            Slot::There(further) => Some(further.clone()),
            Slot::Coming => None,
        };
        self.table().values().filter_map(there).collect()
    }

    /// Each with the process in the guest that it began with.
    pub(super) fn running(&self) -> Vec<(String, u32)> {
        let all = self.all().into_iter();
        all.map(|further| (further.id().to_owned(), further.process().pid())).collect()
    }

    /// Sends the commands of all a signal.
    pub(super) async fn signal_all(&self, signal: i32) {
        for further in self.all() {
            if let Err(error) = further.signal(signal).await {
                tracing::warn!(container = further.id(), %error, "cannot send a signal");
            }
        }
    }

    /// Waits until all have ended, at most until then.
    pub(super) async fn all_over(&self, until: Instant) {
        let over = async {
            for further in self.all() {
                // We hold the sender.
                let _ = further.exit.subscribe().wait_for(Option::is_some).await;
            }
        };
        let _ = tokio::time::timeout_at(until, over).await;
    }

    /// All that are in the VM end with it, as those who wait for them are told.
    pub(super) fn all_ended(&self, code: u32) {
        for further in self.all() {
            further.exit.send_if_modified(|exit| exit.is_none() && exit.replace(code).is_none());
        }
    }
}

impl Further {
    /// Its id in the guest, which is its name.
    fn id(&self) -> &str {
        &self.there.id
    }

    /// As the VM knows it.
    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    fn process(&self) -> &Process {
        match &self.init {
            Init::Logged(process, _) => process,
            Init::Streamed(exec) => &exec.process,
        }
    }

    /// Sends its command a signal.
    pub(super) async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.process().signal(signal).await
    }

    /// Sets its terminal's size.
    pub(super) async fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        self.process().resize(width, height).await
    }

    /// Starts another command in it.
    pub(super) async fn exec(&self, of: &Sandbox, command: &Command) -> Result<Process, Error> {
        of.exec_in(&self.container, &self.there.command, command).await
    }
}

impl Monitor {
    fn unknown(&self, name: &str) -> Error {
        Error::ContainerUnknown { sandbox: self.sandbox.name().to_owned(), name: name.to_owned() }
    }

    fn further(&self, name: &str) -> Result<FurtherRecord, Error> {
        let known = self.ledger.look(|record| record.containers.get(name).cloned());
        known.ok_or_else(|| self.unknown(name))
    }

    /// One as it is shown.
    pub(super) fn container_view(&self, name: &str) -> Result<ContainerView, Error> {
        self.further(name).map(|record| record.view())
    }

    /// One whose command runs.
    pub(super) fn running_container(&self, name: &str) -> Result<Arc<Further>, Error> {
        let running = self.containers.get(name).filter(|it| it.exit.borrow().is_none());
        running.ok_or_else(|| match self.further(name) {
            Ok(_) => Error::ContainerExited { name: name.to_owned() },
            Err(unknown) => unknown,
        })
    }

    /// The process in the guest that a container began with; none for a container that is not ours.
    pub(super) fn begins_with(&self, container: &str) -> Option<u32> {
        if container == self.sandbox.name() {
            return Some(self.init.pid());
        }
        self.containers.get(container).map(|further| further.process().pid())
    }

    /// Serves one who is attached to the input of a container, the sandbox's own included.
    pub(super) async fn serve_input(
        &self,
        name: &str,
        mut connection: UnixStream,
    ) -> io::Result<()> {
        if name == self.sandbox.name() {
            return self.input.serve(&self.init, connection).await;
        }
        let further = self.containers.get(name);
        match further.as_ref().map(|further| &further.init) {
            Some(Init::Logged(process, desk)) => desk.serve(process, connection).await,
            Some(Init::Streamed(_)) | None => {
                streams::answer(&mut connection, Opened::Unknown).await
            }
        }
    }

    /// Waits for a container's end.
    pub(super) async fn container_exit(&self, name: &str) -> Result<u32, Error> {
        if let Some(further) = self.containers.get(name) {
            let mut exit = further.exit.subscribe();
            let code = exit.wait_for(Option::is_some).await;
            // We hold the sender.
            return Ok(code.ok().and_then(|code| *code).unwrap_or(UNKNOWN));
        }
        let record = self.further(name)?;
        record.exit_code.ok_or_else(|| Error::ContainerBusy { name: name.to_owned() })
    }
}
