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

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_uvm::container::{StdinResume, StdioResume};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Monitor;
use super::api::{Command, Started};
use super::streams::{self, Asked, Opened};
use crate::error::Error;
use crate::process::{self, Input, Output, Process};
use crate::root::Root;

/// The table, in the run directory.
const FILE: &str = "execs.json";
/// How long a stream waits to be claimed.
const CLAIM: Duration = Duration::from_secs(10);
/// How long a command is remembered after its end.
const MEMORY: Duration = Duration::from_secs(60);
/// Bytes that are carried at once.
const PIECE: usize = 64 << 10;
/// How often it is looked whether all input has arrived.
const LOOK: Duration = Duration::from_millis(10);

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

    fn forget(&self, id: u64) {
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

/// Goes on with the commands a former monitor started, and ends those nobody was told of.
pub(super) async fn adopt(monitor: &Arc<Monitor>, root: &Root) {
    let path = root.run().join(monitor.sandbox.name()).join(FILE);
    let saved = std::fs::read(&path).unwrap_or_default();
    let saved: Vec<Saved> = serde_json::from_slice(&saved).unwrap_or_default();
    *monitor.execs.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    let counter = saved.iter().map(|exec| exec.id).max().unwrap_or(0);
    monitor.execs.counter.store(counter, Ordering::Relaxed);
    let state = match monitor.sandbox.vm().guest_state().await {
        Ok(state) => state,
        Err(error) => return tracing::warn!(%error, "cannot list what the guest runs"),
    };
    let container = monitor.sandbox.name();
    for running in state.processes {
        let pid = running.process_id;
        if running.container_id.as_str() != container || pid == monitor.init.pid() {
            continue;
        }
        let known = saved.iter().find(|exec| exec.pid == pid);
        let resumed = resume(monitor, pid, StdioResume::default()).await;
        let process = match resumed {
            Ok(process) => process,
            Err(error) => {
                tracing::warn!(pid, %error, "cannot go on with a command");
                continue;
            }
        };
        let Some(saved) = known.cloned() else {
            tracing::info!(pid, "nobody was told of this command; it ends");
            tokio::spawn(async move {
                if process.kill().await.is_ok() && process.wait().await.is_ok() {
                    process.forget().await;
                }
            });
            continue;
        };
        let streams = Mutex::default();
        let exec = Exec { saved, process, streams, claimed: AtomicBool::new(false) };
        attend(monitor, monitor.execs.insert(exec));
    }
    monitor.execs.write_down();
}

async fn resume(monitor: &Monitor, pid: u32, stdio: StdioResume) -> Result<Process, Error> {
    let sandbox = &monitor.sandbox;
    process::resume(sandbox.vm(), sandbox.name(), sandbox.name(), pid, stdio).await
}

/// Starts a command and looks after it until it is forgotten.
pub(super) async fn start(monitor: &Arc<Monitor>, command: &Command) -> Result<Started, Error> {
    let mut process = monitor.live()?.exec(command).await?;
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
    };
    let started = Started { id: saved.id, token: saved.token.clone() };
    let exec =
        Exec { saved, process, streams: Mutex::new(streams), claimed: AtomicBool::new(false) };
    let exec = monitor.execs.insert(exec);
    monitor.execs.write_down();
    attend(monitor, exec);
    Ok(started)
}

/// Looks after a command until it is forgotten, on a task that ends with it or with the monitor.
fn attend(monitor: &Arc<Monitor>, exec: Arc<Exec>) {
    let monitor = monitor.clone();
    tokio::spawn(async move {
        let unclaimed = async {
            tokio::time::sleep(CLAIM).await;
            // A closed input is an end of input.
            drop(exec.take_input());
            if !exec.claimed.load(Ordering::Relaxed) {
                throw_away(&monitor, &exec).await;
            }
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = exec.process.wait() => ended.is_ok(),
            () = unclaimed => false,
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

/// Reads outputs nobody claims.
async fn throw_away(monitor: &Monitor, exec: &Exec) {
    for stream in ["stdout", "stderr"] {
        let Ok(Some((output, keep))) = open_output(monitor, exec, stream, 0).await else {
            continue;
        };
        tokio::spawn(async move {
            let mut output = output;
            let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
            drop(keep);
        });
    }
}

/// Accepts the connections of streams. Ends only by being aborted.
pub(super) async fn serve(monitor: Arc<Monitor>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let monitor = monitor.clone();
                tokio::spawn(async move {
                    if let Err(error) = carry(&monitor, connection).await {
                        tracing::debug!(%error, "a stream's connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(monitor: &Monitor, mut connection: UnixStream) -> io::Result<()> {
    let asked = tokio::time::timeout(CLAIM, streams::read_asked(&mut connection)).await??;
    let exec = monitor.execs.by_token(&asked.token).filter(|exec| exec.has(&asked.stream));
    let Some(exec) = exec else {
        return streams::answer(&mut connection, Opened::Unknown).await;
    };
    if asked.stream == "stdin" {
        return carry_input(monitor, &exec, connection).await;
    }
    exec.claimed.store(true, Ordering::Relaxed);
    carry_output(monitor, &exec, &asked, connection).await
}

/// The stream that was connected at the start, if it is to be read from there; else the guest is asked
/// for it. The process is kept as long as its stream is in use.
async fn open_output(
    monitor: &Monitor,
    exec: &Exec,
    stream: &str,
    offset: u64,
) -> Result<Option<(Output, Option<Process>)>, Error> {
    if let Some(fresh) = exec.take_output(stream).filter(|fresh| fresh.offset() == offset) {
        return Ok(Some((fresh, None)));
    }
    let wanted = |name| (stream == name).then_some(offset);
    let stdio = StdioResume {
        stdout: wanted("stdout"),
        stderr: wanted("stderr"),
        ..StdioResume::default()
    };
    let mut process = resume(monitor, exec.saved.pid, stdio).await?;
    let output = if stream == "stdout" { process.take_stdout() } else { process.take_stderr() };
    Ok(output.map(|output| (output, Some(process))))
}

async fn carry_output(
    monitor: &Monitor,
    exec: &Exec,
    asked: &Asked,
    mut connection: UnixStream,
) -> io::Result<()> {
    let opened = open_output(monitor, exec, &asked.stream, asked.offset).await;
    let Some((mut output, _keep)) = opened.map_err(io::Error::other)? else {
        return streams::answer(&mut connection, Opened::Unknown).await;
    };
    streams::answer(&mut connection, Opened::At(output.offset())).await?;
    let mut buffer = vec![0; PIECE];
    loop {
        // What was read before is acknowledged by this: it is in the connection, which outlives us.
        let count = output.read(&mut buffer).await?;
        if let Err(error) = streams::write_piece(&mut connection, &buffer[..count]).await {
            tracing::debug!(%error, "the reader is gone, the command is not");
            tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        if count == 0 {
            return Ok(());
        }
    }
}

async fn carry_input(monitor: &Monitor, exec: &Exec, connection: UnixStream) -> io::Result<()> {
    let (mut from, mut answers) = connection.into_split();
    let (mut input, _keep) = match exec.take_input() {
        Some(fresh) => (fresh, None),
        None => {
            let stdio = StdioResume { stdin: StdinResume::Fresh, ..StdioResume::default() };
            let resumed = resume(monitor, exec.saved.pid, stdio).await;
            let mut process = resumed.map_err(io::Error::other)?;
            let Some(input) = process.take_stdin() else {
                return streams::answer(&mut answers, Opened::Unknown).await;
            };
            (input, Some(process))
        }
    };
    streams::answer(&mut answers, Opened::At(input.written())).await?;
    let copied = tokio::io::copy(&mut from, &mut input).await;
    if copied.is_ok() {
        input.shutdown().await?;
        // Its end is not among the bytes: whoever carries it must stay until that has arrived, too.
        while !input.is_over() {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // It takes no more.
                _ = exec.process.wait() => break,
            }
        }
    }
    // Also when the command takes no more: there is nothing to send again.
    streams::say_arrived(&mut answers).await
}
