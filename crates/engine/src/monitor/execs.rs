//! Further commands in the container, and how their streams find them.
//!
//! A command is started by a request, which gives out a token. Each stream is a connection of its own
//! to `stdio.sock` that begins with a line `TOKEN STREAM`; from there on it *is* the stream: closing
//! one direction of it is the stream's end. A stream nobody claims in time is read and thrown away,
//! or closed, so that the command does not wait for ever.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Monitor;
use super::api::{Command, Started};
use crate::error::Error;
use crate::root::Root;
use crate::process::{Input, Output, Process};

/// How long a stream waits to be claimed.
const CLAIM: Duration = Duration::from_secs(10);
/// How long a command is remembered after its end.
const MEMORY: Duration = Duration::from_secs(60);
/// The longest first line of a connection.
const LINE: usize = 80;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Execs {
    counter: AtomicU64,
    table: Mutex<BTreeMap<u64, Arc<Exec>>>,
}

/// One further command.
#[derive(Debug)]
pub(super) struct Exec {
    token: String,
    pub(super) process: Process,
    streams: Mutex<Streams>,
}

#[derive(Debug)]
struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

impl Execs {
    /// Takes charge of a command that has just started.
    fn insert(&self, mut process: Process) -> (u64, Arc<Exec>) {
        let streams = Streams {
            stdin: process.take_stdin(),
            stdout: process.take_stdout(),
            stderr: process.take_stderr(),
        };
        let token = uuid::Uuid::new_v4().simple().to_string();
        let exec = Arc::new(Exec { token, process, streams: Mutex::new(streams) });
        let id = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        self.table().insert(id, exec.clone());
        (id, exec)
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Exec>> {
        self.table().get(&id).cloned()
    }

    fn by_token(&self, token: &str) -> Option<Arc<Exec>> {
        self.table().values().find(|exec| exec.token == token).cloned()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exec {
    fn streams(&self) -> std::sync::MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets rid of streams that nobody claimed.
    fn let_go(&self) {
        let mut streams = self.streams();
        // A closed input is an end of input.
        drop(streams.stdin.take());
        for mut output in [streams.stdout.take(), streams.stderr.take()].into_iter().flatten() {
            tokio::spawn(async move { tokio::io::copy(&mut output, &mut tokio::io::sink()).await });
        }
    }
}

/// Goes on with the commands a former monitor started.
pub(super) async fn adopt(_monitor: &Arc<Monitor>, _root: &Root) {}

/// Starts a command and looks after it until it is forgotten.
pub(super) async fn start(monitor: &Arc<Monitor>, command: &Command) -> Result<Started, Error> {
    let process = monitor.live()?.exec(command).await?;
    let (id, exec) = monitor.execs.insert(process);
    let started = Started { id, token: exec.token.clone() };
    let monitor = monitor.clone();
    tokio::spawn(async move {
        let unclaimed = async {
            tokio::time::sleep(CLAIM).await;
            exec.let_go();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = exec.process.wait() => {}
            () = unclaimed => {}
            // Its VM goes, and it with it.
            () = monitor.over.cancelled() => {}
        }
        tokio::select! {
            () = tokio::time::sleep(MEMORY) => {}
            () = monitor.over.cancelled() => {}
        }
        monitor.execs.table().remove(&id);
    });
    Ok(started)
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
    let line = tokio::time::timeout(CLAIM, first_line(&mut connection)).await??;
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "no such stream");
    let (token, stream) = line.split_once(' ').ok_or_else(unknown)?;
    let exec = monitor.execs.by_token(token).ok_or_else(unknown)?;
    match stream {
        "stdin" => {
            let input = exec.streams().stdin.take();
            let mut input = input.ok_or_else(unknown)?;
            tokio::io::copy(&mut connection, &mut input).await?;
            input.shutdown().await
        }
        "stdout" | "stderr" => {
            let output = {
                let mut streams = exec.streams();
                if stream == "stdout" { streams.stdout.take() } else { streams.stderr.take() }
            };
            let mut output = output.ok_or_else(unknown)?;
            if tokio::io::copy(&mut output, &mut connection).await.is_err() {
                // The reader is gone, the command is not.
                tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
            }
            Ok(())
        }
        _ => Err(unknown()),
    }
}

/// Reads up to the first newline and not a byte more: what follows is the stream's.
async fn first_line(connection: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = connection.read_u8().await?;
        if byte == b'\n' {
            let text = String::from_utf8(line);
            return text.map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        }
        if line.len() == LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(byte);
    }
}
