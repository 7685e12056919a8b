//! What the guest holds: containers, processes, their streams and their exits.
//!
//! Pure bookkeeping; it outlives every connection. A container's life:
//!
//! ```text
//!  reserve --> Creating --live--> Live --exited--> Exited --forget--> (gone)
//!                 '--forget--> (gone)
//! ```
//!
//! A process stays in the table after its end until its exit was delivered for
//! good: to a plain host by answering one waiter, to a host with our extension by
//! its acknowledgement and the end of its streams. An init process stays as long
//! as its container does, so that a late waiter still gets its exit code.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::service::{Stop, Target};
use crate::hresult::Hresult;
use crate::stdio::{Input, SharedRing, StdStream};

/// Exits kept for a host that never fetches them; the oldest go first.
const EXITS_MAX: usize = 4096;

/// Ids for processes whose pid is still taken by an exit nobody acknowledged.
/// Above every pid of Linux (2^22).
const ALIAS_FIRST: u32 = 0x8000_0000;

/// Exit codes travel through this: `None` until there is one.
pub(super) type ExitWatch = watch::Receiver<Option<u32>>;

#[derive(Debug, Default)]
pub(super) struct Table {
    containers: BTreeMap<String, Container>,
    processes: BTreeMap<u32, Process>,
    aliases: u32,
    exits: u64,
    made: u64,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) phase: Phase,
    /// Tells it from a later container of the same id.
    serial: u64,
    /// Id of the init process in the table, once it was started.
    pub(super) init: Option<u32>,
    stop: Option<Stop>,
    /// The last link that was told of the exit.
    told: Option<u64>,
    acknowledged: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Phase {
    Creating,
    Live(ExitWatch),
    Exited(Exit),
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Graceful,
    Forced,
    Unexpected,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) target: Target,
    pub(super) exit: ExitWatch,
    pub(super) streams: Streams,
    init: bool,
    waiters: u32,
    delivered: bool,
    acknowledged: bool,
    discarded: bool,
    /// Place in the order of exits; `None` while it runs.
    ended: Option<u64>,
}

/// The guest's ends of a process's streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<Arc<Input>>,
    pub(super) stdout: Option<SharedRing>,
    pub(super) stderr: Option<SharedRing>,
}

impl Streams {
    pub(super) fn ring(&self, stream: StdStream) -> Option<&SharedRing> {
        match stream {
            StdStream::In => None,
            StdStream::Out => self.stdout.as_ref(),
            StdStream::Err => self.stderr.as_ref(),
        }
    }

    /// The process left the table: its output goes on only where a connection
    /// carries it already.
    fn abandon(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
        for ring in [&self.stdout, &self.stderr].into_iter().flatten() {
            if !ring.is_served() {
                ring.stop();
            }
        }
    }

    /// Whether a connection carries any output.
    fn are_served(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().flatten().any(SharedRing::is_served)
    }

    /// Whether nothing is left that the host could still want.
    fn are_over(&self) -> bool {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .all(|ring| ring.inspect(crate::stdio::OutputRing::is_stopped))
    }
}

/// The connection a notification would go to.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkFacts {
    /// Its number; each connection has its own.
    pub(super) number: u64,
    /// Whether it speaks our extension.
    pub(super) extended: bool,
}

impl Table {
    /// Takes a container id before the container is made; gives it a serial.
    pub(super) fn reserve(&mut self, id: &str) -> Result<u64, Hresult> {
        if self.containers.contains_key(id) {
            return Err(Hresult::ALREADY_EXISTS);
        }
        self.made += 1;
        let container = Container {
            phase: Phase::Creating,
            serial: self.made,
            init: None,
            stop: None,
            told: None,
            acknowledged: false,
        };
        self.containers.insert(id.to_owned(), container);
        Ok(self.made)
    }

    /// The container was made.
    pub(super) fn live(&mut self, id: &str, exit: ExitWatch) {
        if let Some(container) = self.containers.get_mut(id) {
            container.phase = Phase::Live(exit);
        }
    }

    /// Drops a container and its processes. The waiters of these still get
    /// their answers, for they hold the exit themselves; output that a connection
    /// is carrying still arrives, and what nobody can fetch any more is dropped.
    pub(super) fn forget(&mut self, id: &str) {
        self.containers.remove(id);
        self.processes.retain(|_, process| {
            let keep = process.target.container.as_deref() != Some(id);
            if !keep {
                process.streams.abandon();
            }
            keep
        });
    }

    /// A container that was made, whether or not it has exited.
    pub(super) fn container(&self, id: &str) -> Result<&Container, Hresult> {
        match self.containers.get(id) {
            Some(container) if !matches!(container.phase, Phase::Creating) => Ok(container),
            Some(_) | None => Err(Hresult::NO_SUCH_SYSTEM),
        }
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = (&str, &Container)> {
        self.containers.iter().map(|(id, container)| (id.as_str(), container))
    }

    pub(super) fn processes(&self) -> impl Iterator<Item = (u32, &Process)> {
        self.processes.iter().map(|(id, process)| (*id, process))
    }

    /// Notes how a container is being stopped, and says whether it still lives.
    pub(super) fn stopping(&mut self, id: &str, stop: Stop) -> Result<(), Hresult> {
        self.container(id)?;
        let Some(container) = self.containers.get_mut(id) else {
            return Err(Hresult::NO_SUCH_SYSTEM);
        };
        if matches!(container.phase, Phase::Exited(_)) {
            return Err(Hresult::ALREADY_STOPPED);
        }
        container.stop = Some(stop);
        Ok(())
    }

    /// The init process of the container with this serial ended.
    pub(super) fn container_exited(&mut self, id: &str, serial: u64) {
        let container = self.containers.get_mut(id).filter(|found| found.serial == serial);
        let Some(container) = container else { return };
        container.phase = Phase::Exited(match container.stop {
            Some(Stop::Graceful) => Exit::Graceful,
            Some(Stop::Forced) => Exit::Forced,
            None => Exit::Unexpected,
        });
        if let Some(init) = container.init {
            self.process_exited(init);
        }
    }

    /// Enters a started process and gives it its id: its pid, unless an exit of
    /// an earlier process with that pid is still unacknowledged.
    pub(super) fn enter(
        &mut self,
        target: Target,
        init: bool,
        exit: ExitWatch,
        streams: Streams,
    ) -> u32 {
        let mut id = target.pid;
        while self.processes.contains_key(&id) {
            id = ALIAS_FIRST | self.aliases;
            self.aliases = self.aliases.wrapping_add(1) & !ALIAS_FIRST;
        }
        if init
            && let Some(name) = &target.container
            && let Some(container) = self.containers.get_mut(name)
        {
            container.init = Some(id);
        }
        let process = Process {
            target,
            exit,
            streams,
            init,
            waiters: 0,
            delivered: false,
            acknowledged: false,
            discarded: false,
            ended: None,
        };
        let ended = process.exit.borrow().is_some();
        self.processes.insert(id, process);
        if ended {
            self.process_exited(id);
        }
        id
    }

    /// A process of a container; `None` means the VM itself.
    pub(super) fn process(&self, container: Option<&str>, id: u32) -> Result<&Process, Hresult> {
        if let Some(name) = container {
            self.container(name)?;
        }
        match self.processes.get(&id) {
            Some(process) if process.target.container.as_deref() == container => Ok(process),
            Some(_) | None => Err(Hresult::NOT_FOUND),
        }
    }

    /// A process that has not exited.
    pub(super) fn running(&self, container: Option<&str>, id: u32) -> Result<Target, Hresult> {
        let process = self.process(container, id)?;
        if process.ended.is_some() || process.exit.borrow().is_some() {
            return Err(Hresult::NOT_FOUND);
        }
        Ok(process.target.clone())
    }

    /// A process ended: it takes no more input.
    pub(super) fn process_exited(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.ended.is_some() {
            return;
        }
        self.exits += 1;
        process.ended = Some(self.exits);
        if let Some(stdin) = &process.streams.stdin {
            stdin.close();
        }
        self.settle(id);
        let ended =
            self.processes.values().filter(|process| process.ended.is_some() && !process.init);
        if ended.count() > EXITS_MAX {
            self.drop_oldest_exit();
        }
    }

    fn drop_oldest_exit(&mut self) {
        let oldest = self
            .processes
            .iter()
            .filter(|(_, process)| !process.init)
            .filter_map(|(id, process)| Some((process.ended?, *id)))
            .min();
        if let Some((_, id)) = oldest {
            tracing::warn!(pid = id, "an exit nobody asked for was dropped");
            self.remove(id);
        }
    }

    /// Somebody waits for a process now.
    pub(super) fn wait_begins(&mut self, id: u32) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.waiters += 1;
        }
    }

    /// A wait is over; `delivered` when its answer with the exit code is on its way.
    pub(super) fn wait_ends(&mut self, id: u32, delivered: bool, extended: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.waiters = process.waiters.saturating_sub(1);
        process.delivered |= delivered;
        // A plain host has no other way to say that it knows.
        process.acknowledged |= delivered && !extended;
        if delivered && !extended && !process.init {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(process) = self.processes.remove(&id) {
            process.streams.abandon();
        }
    }

    /// The host recorded the exit of a process; with `discard` it wants nothing more
    /// of its streams than what connections carry now.
    pub(super) fn acknowledge_process(&mut self, id: u32, discard: bool) {
        if let Some(process) = self.processes.get_mut(&id).filter(|found| found.ended.is_some()) {
            process.acknowledged = true;
            process.discarded |= discard;
        }
        self.settle(id);
    }

    /// The host recorded the exit of a container.
    pub(super) fn acknowledge_container(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            container.acknowledged = matches!(container.phase, Phase::Exited(_));
        }
    }

    /// Whether a stream of this process can still be asked for.
    pub(super) fn holds(&self, id: u32) -> bool {
        self.processes.contains_key(&id)
    }

    /// Drops a process once nothing of it is wanted any more.
    pub(super) fn settle(&mut self, id: u32) {
        let over =
            self.processes.get(&id).is_some_and(|process| !process.init && process.is_settled());
        if over {
            self.remove(id);
        }
    }

    /// The exit of a container that `link` must be told now, once. Its init's exit
    /// code goes first, to those who wait for it.
    pub(super) fn due_notification(&mut self, id: &str, link: LinkFacts) -> Option<Exit> {
        let container = self.containers.get(id)?;
        let Phase::Exited(exit) = container.phase else { return None };
        let told = match link.extended {
            true => container.acknowledged || container.told == Some(link.number),
            false => container.told.is_some(),
        };
        let init = container.init.and_then(|init| self.processes.get(&init));
        let code_first =
            init.is_some_and(|init| !init.delivered && (init.waiters > 0 || !link.extended));
        if told || code_first {
            return None;
        }
        self.containers.get_mut(id)?.told = Some(link.number);
        Some(exit)
    }
}

impl Container {
    pub(super) fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }
}

impl Process {
    /// Whether the host has heard of everything there was: nothing to list.
    pub(super) fn is_settled(&self) -> bool {
        let unwanted = self.discarded && !self.streams.are_served();
        self.ended.is_some() && self.acknowledged && (unwanted || self.streams.are_over())
    }
}
