//! Further commands in the container, and how their streams find them.
//!
//! A command is started by a request, which gives out a token that opens its streams
//! ([`streams`]). The command and its streams are the guest's; what is kept here is who
//! it is, and that is written down, so that a fresh monitor goes on with it: whoever holds the token
//! connects again, and says how far it came. An output nobody claims in time is read and thrown away,
//! so that the command does not wait for ever.
//!
//! The table is a file of the run directory: it is of no use when the host boots anew. A command the
//! guest runs and the table does not know was being started when the monitor died; its caller was told
//! that it was not, so it ends.

mod adopt;
mod carry;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_uvm::container::StdioResume;
use serde::{Deserialize, Serialize};

use super::Monitor;
use super::api::{Command, Started};
use crate::error::Error;
use crate::process::{self, Input, Output, Process};

pub(in crate::monitor) use adopt::{Known, adopt};
pub(in crate::monitor) use carry::serve;

/// The table, in the run directory.
const FILE: &str = "execs.json";
/// How long a stream waits to be claimed.
const CLAIM: Duration = Duration::from_secs(10);
/// How long a command is remembered after its end.
pub(super) const MEMORY: Duration = Duration::from_secs(60);

/// The table.
#[derive(Debug, Default)]
pub(super) struct Execs {
    counter: AtomicU64,
    file: Mutex<Option<PathBuf>>,
    table: Mutex<BTreeMap<u64, Arc<Exec>>>,
}

/// One further command.
#[derive(Debug)]
pub(super) struct Exec {
    saved: Saved,
    pub(super) process: Process,
    streams: Mutex<Streams>,
    /// Somebody has claimed an output.
    claimed: AtomicBool,
}

/// A command as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Saved {
    id: u64,
    token: String,
    pid: u32,
    stdin: bool,
    terminal: bool,
    /// The container it runs in; none: the sandbox's own.
    #[serde(default)]
    container: Option<String>,
}

/// Streams that were connected when the command was started and that nobody claimed yet.
#[derive(Debug, Default)]
struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

impl Execs {
    fn insert(&self, exec: Exec) -> Arc<Exec> {
        let exec = Arc::new(exec);
        self.table().insert(exec.saved.id, exec.clone());
        exec
    }

    pub(super) fn forget(&self, id: u64) {
        self.table().remove(&id);
        self.write_down();
    }

    /// Writes the table. It is as good as the page cache: it must outlive this process, not the host.
    fn write_down(&self) {
        let saved: Vec<Saved> = self.table().values().map(|exec| exec.saved.clone()).collect();
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = file.as_ref() else { return };
        let draft = path.with_extension("new");
        let written = serde_json::to_vec(&saved)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&draft, text))
            .and_then(|()| std::fs::rename(&draft, path));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write down the commands that run");
        }
    }

    /// Each by its container, none for the sandbox's own, and its process in the guest.
    pub(super) fn running(&self) -> Vec<(Option<String>, u32)> {
        let table = self.table();
        table.values().map(|exec| (exec.saved.container.clone(), exec.saved.pid)).collect()
    }

    /// Waits until the commands in a container have ended, each at most for `limit`.
    pub(super) async fn settle(&self, container: &str, limit: Duration) {
        let of_it = |exec: &&Arc<Exec>| exec.container() == Some(container);
        let all: Vec<Arc<Exec>> = self.table().values().filter(of_it).cloned().collect();
        for exec in all {
            let _ = tokio::time::timeout(limit, exec.process.wait()).await;
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Exec>> {
        self.table().get(&id).cloned()
    }

    fn by_token(&self, token: &str) -> Option<Arc<Exec>> {
        self.table().values().find(|exec| exec.saved.token == token).cloned()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exec {
    /// Its id in the table.
    pub(super) fn id(&self) -> u64 {
        self.saved.id
    }

    /// What its caller is told.
    pub(super) fn started(&self) -> Started {
        Started { id: self.saved.id, token: self.saved.token.clone() }
    }

    /// The container it runs in; none: the sandbox's own.
    fn container(&self) -> Option<&str> {
        self.saved.container.as_deref()
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_input(&self) -> Option<Input> {
        self.streams().stdin.take()
    }

    fn take_output(&self, stream: &str) -> Option<Output> {
        let mut streams = self.streams();
        if stream == "stdout" { streams.stdout.take() } else { streams.stderr.take() }
    }

    fn has(&self, stream: &str) -> bool {
        match stream {
            "stdin" => self.saved.stdin,
            "stdout" => true,
            "stderr" => !self.saved.terminal,
            _ => false,
        }
    }
}

async fn resume(
    monitor: &Monitor,
    container: Option<&str>,
    pid: u32,
    stdio: StdioResume,
) -> Result<Process, Error> {
    let sandbox = &monitor.sandbox;
    let container = container.unwrap_or(sandbox.name());
    process::resume(sandbox.vm(), sandbox.name(), container, pid, stdio).await
}

/// Starts a command in a container, the sandbox's own if none is named, and looks after it until it
/// is forgotten.
pub(super) async fn start(
    monitor: &Arc<Monitor>,
    container: Option<&str>,
    command: &Command,
) -> Result<Started, Error> {
    let sandbox = monitor.live()?;
    let process = match container {
        None => sandbox.exec(command).await?,
        Some(name) => monitor.running_container(name)?.exec(sandbox, command).await?,
    };
    let exec = enter(monitor, container, process, command);
    let started = exec.started();
    attend(monitor, exec);
    Ok(started)
}

/// Enters a command that runs, so that its streams can be opened.
pub(super) fn enter(
    monitor: &Arc<Monitor>,
    container: Option<&str>,
    mut process: Process,
    command: &Command,
) -> Arc<Exec> {
    let streams = Streams {
        stdin: process.take_stdin(),
        stdout: process.take_stdout(),
        stderr: process.take_stderr(),
    };
    let saved = Saved {
        id: monitor.execs.counter.fetch_add(1, Ordering::Relaxed) + 1,
        token: uuid::Uuid::new_v4().simple().to_string(),
        pid: process.pid(),
        stdin: command.stdin,
        terminal: command.terminal.is_some(),
        container: container.map(str::to_owned),
    };
    let exec =
        Exec { saved, process, streams: Mutex::new(streams), claimed: AtomicBool::new(false) };
    let exec = monitor.execs.insert(exec);
    monitor.execs.write_down();
    exec
}

/// Looks after a command until it is forgotten, on a task that ends with it or with the monitor.
fn attend(monitor: &Arc<Monitor>, exec: Arc<Exec>) {
    let monitor = monitor.clone();
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = exec.process.wait() => ended.is_ok(),
            () = unclaimed(&monitor, &exec) => false,
            () = monitor.over.cancelled() => false,
        };
        tokio::select! {
            () = tokio::time::sleep(MEMORY) => {}
            () = monitor.over.cancelled() => return,
        }
        // The guest keeps it until now: the answer with its exit code may have been lost.
        if ended {
            exec.process.forget().await;
        }
        monitor.execs.forget(exec.saved.id);
    });
}

/// Sees to it that a command whose streams nobody claims does not wait for ever. Ends never.
pub(super) async fn unclaimed(monitor: &Monitor, exec: &Exec) {
    tokio::time::sleep(CLAIM).await;
    // A closed input is an end of input.
    drop(exec.take_input());
    if !exec.claimed.load(Ordering::Relaxed) {
        throw_away(monitor, exec).await;
    }
    std::future::pending::<()>().await;
}

/// Reads outputs nobody claims.
async fn throw_away(monitor: &Monitor, exec: &Exec) {
    for stream in ["stdout", "stderr"] {
        let Ok(Some((output, keep))) = carry::open_output(monitor, exec, stream, 0).await else {
            continue;
        };
        tokio::spawn(async move {
            let mut output = output;
            let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
            drop(keep);
        });
    }
}
