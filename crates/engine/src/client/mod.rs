//! A live sandbox as everybody but its monitor sees it: found by name, asked over its API.

mod container;
mod error;
mod exec;
mod input;
mod line;
mod plugs;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_uvm::process::Process;
use hyper::Method;
use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::ledger;
use crate::monitor::api::{
    Command, Diagnostics, Drift, Exit, Failure, SandboxView, SignalRequest, Started, StopRequest,
    Update, Usage,
};
use crate::monitor::{API_SOCKET, wake};
use crate::record::SandboxRecord;
use crate::root::Root;
use line::{Gone, Line};

pub use container::RemoteContainer;
pub use error::{Cause, ClientError};
pub use exec::RemoteExec;

/// How long a monitor may take to come up and adopt its sandbox.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a monitor that has told of the end may take to go.
const ENDING: Duration = Duration::from_secs(10);

/// How long to wait until a socket is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// A monitor that dies within so long of being asked may do so for ever.
const QUICK: Duration = Duration::from_secs(1);

/// So many such in a row are enough.
const MOST_DEATHS: u32 = 50;

/// A sandbox that something is written down of.
#[derive(Debug, Clone)]
pub struct Client {
    root: Root,
    name: String,
    dir: PathBuf,
}

/// The names of all sandboxes that something is written down of, sorted.
///
/// # Errors
/// The directory of the states cannot be read.
pub fn names(root: &Root) -> Result<Vec<String>, ClientError> {
    ledger::names(root).map_err(|error| ClientError::Read(Box::new(error)))
}

/// A sandbox by its name, and what is written down of it if that can be read.
pub type Listed = (String, Result<SandboxView, ClientError>);

/// What is written down of every sandbox, by name. One that is being removed may be missing; of one
/// that cannot be read the error is given.
///
/// # Errors
/// The directory of the states cannot be read.
pub fn all(root: &Root) -> Result<Vec<Listed>, ClientError> {
    let read = |name: String| {
        let read = ledger::read(root, &name).map_err(|error| ClientError::Read(Box::new(error)));
        match read {
            Ok(None) => None,
            Ok(Some(record)) => Some((name, Ok(record.view()))),
            Err(error) => Some((name, Err(error))),
        }
    };
    Ok(names(root)?.into_iter().filter_map(read).collect())
}

impl Client {
    /// Finds a sandbox by its name, or by a beginning that is nobody else's.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Ambiguous`]; the states cannot be listed.
    pub fn find(root: &Root, name: &str) -> Result<Self, ClientError> {
        let all = names(root)?;
        let found = match all.iter().find(|known| *known == name) {
            Some(exact) => exact.clone(),
            None => {
                let candidates: Vec<String> =
                    all.into_iter().filter(|known| known.starts_with(name)).collect();
                match candidates.as_slice() {
                    [one] if !name.is_empty() => one.clone(),
                    [] | [_] => return Err(ClientError::Unknown { name: name.to_owned() }),
                    [_, _, ..] => {
                        return Err(ClientError::Ambiguous { name: name.to_owned(), candidates });
                    }
                }
            }
        };
        Ok(Self { root: root.clone(), dir: root.run().join(&found), name: found })
    }

    /// Its whole name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where what its command has written is.
    pub fn logs(&self) -> PathBuf {
        self.root.logs(&self.name)
    }

    /// What is written down of it.
    ///
    /// # Errors
    /// It cannot be read, or was removed.
    pub fn record(&self) -> Result<SandboxRecord, ClientError> {
        let read = ledger::read(&self.root, &self.name);
        let read = read.map_err(|error| ClientError::Read(Box::new(error)))?;
        read.ok_or_else(|| ClientError::Unknown { name: self.name.clone() })
    }

    /// What there is to say about it.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn show(&self) -> Result<SandboxView, ClientError> {
        match self.get("/v1/sandbox").await {
            Err(ClientError::NotRunning { .. }) => Ok(self.record()?.view()),
            other => other,
        }
    }

    /// Waits for its command's end, whoever looks after it meanwhile.
    ///
    /// # Errors
    /// The monitor cannot be asked; the sandbox is removed before it is known how its command ended.
    pub async fn wait(&self) -> Result<u32, ClientError> {
        match self.get::<Exit>("/v1/exit").await {
            Err(ClientError::NotRunning { .. }) => Ok(self.exit_code()?),
            other => other.map(|exit| exit.exit_code),
        }
    }

    fn exit_code(&self) -> Result<u32, ClientError> {
        let code = self.record()?.exit_code;
        code.ok_or_else(|| self.cannot_talk("nobody knows how its command ended"))
    }

    /// Sends its command a signal.
    ///
    /// # Errors
    /// It has ended; the monitor cannot be asked.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.post("/v1/signal", &SignalRequest { signal }).await
    }

    /// Ends its command, by force after so many seconds, and its VM.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn stop(&self, timeout: u64) -> Result<u32, ClientError> {
        let stopped = self.post::<_, Exit>("/v1/stop", &StopRequest { timeout }).await;
        match stopped {
            Err(ClientError::NotRunning { .. }) => self.exit_code(),
            other => other.map(|exit| exit.exit_code),
        }
    }

    /// Ends it at once and removes everything.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn remove(&self) -> Result<(), ClientError> {
        let deadline = tokio::time::Instant::now() + ENDING;
        loop {
            match self.ask::<(), ()>(Method::DELETE, "/v1/sandbox", None).await {
                Ok(()) | Err(ClientError::Unknown { .. }) => return Ok(()),
                Err(ClientError::NotRunning { .. }) => {}
                // No monitor can take it over: it goes without one.
                Err(error @ ClientError::Talk { .. }) => {
                    tracing::warn!(%error, "it is removed without its monitor");
                }
                Err(error) => return Err(error),
            }
            match crate::recover::remove(&self.root, &self.name).await {
                Ok(()) => return Ok(()),
                // Its monitor has told of the end and is about to go, or starts it again.
                Err(crate::Error::Runs { .. }) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    let (name, source) = (self.name.clone(), Box::new(error));
                    return Err(ClientError::Remove { name, source });
                }
            }
        }
    }

    /// What it uses.
    ///
    /// # Errors
    /// The guest does not answer; the monitor cannot be asked.
    pub async fn stats(&self) -> Result<Usage, ClientError> {
        self.get("/v1/stats").await
    }

    /// What there is to see of it when it does not do what it should.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn diagnostics(&self) -> Result<Diagnostics, ClientError> {
        self.get("/v1/diagnostics").await
    }

    /// Where what is written down of it and what there is differ. One that needs no monitor is
    /// looked at without; one that has none and needs one gets one.
    ///
    /// # Errors
    /// The guest does not answer; the monitor cannot be asked.
    pub async fn drift(&self) -> Result<Vec<Drift>, ClientError> {
        match self.get("/v1/drift").await {
            Err(ClientError::NotRunning { .. }) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Has its monitor make way for a fresh one, which brings in order what it finds, and waits for
    /// that.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn renew(&self) -> Result<(), ClientError> {
        let monitor = self.record()?.monitor;
        let monitor = monitor.and_then(|monitor| Process::find(&monitor).ok().flatten());
        if let (Some(monitor), Ok(mut line)) = (monitor, connect(&self.dir, API_SOCKET).await) {
            monitor.terminate().map_err(|error| self.cannot_talk(error))?;
            // What it holds goes when it becomes its own successor.
            let gone = tokio::time::timeout(PATIENCE, line.read(&mut [0])).await;
            gone.map_err(|_| self.cannot_talk("its monitor does not make way"))?.unwrap_or(0);
        }
        self.show().await.map(drop)
    }

    /// Makes it so.
    ///
    /// # Errors
    /// It cannot have that much; the monitor cannot be asked.
    pub async fn update(&self, update: &Update) -> Result<SandboxView, ClientError> {
        self.post("/v1/update", update).await
    }

    /// Pauses its VM, or lets it go on.
    ///
    /// # Errors
    /// The VM refuses; the monitor cannot be asked.
    pub async fn set_paused(&self, paused: bool) -> Result<SandboxView, ClientError> {
        self.post(if paused { "/v1/pause" } else { "/v1/resume" }, &()).await
    }

    /// Starts a further command.
    ///
    /// # Errors
    /// It cannot be started; the monitor cannot be asked.
    pub async fn exec(&self, command: &Command) -> Result<RemoteExec, ClientError> {
        let started: Started = self.post("/v1/execs", command).await?;
        Ok(RemoteExec::new(self.clone(), started))
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask::<(), T>(Method::GET, path, None).await
    }

    pub(super) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Asks the monitor, and sees to it that there is one. What only looks is asked again when the
    /// monitor dies over it.
    async fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| self.cannot_talk(e))?;
        let body = Bytes::from(body.unwrap_or_default());
        // What only looks, or takes away what may be gone already, can be asked twice.
        let is_repeatable = method == Method::GET || method == Method::DELETE;
        let mut in_a_row = 0;
        loop {
            let stream = self.reach(API_SOCKET).await?;
            let began = tokio::time::Instant::now();
            let asked = match self.raise(stream, is_repeatable).await {
                Ok(mut line) => match line.ask(method.clone(), path, body.clone()).await {
                    Err(Gone(source)) if !is_repeatable => return Err(self.cannot_talk(source)),
                    asked => asked,
                },
                Err(gone) => Err(gone),
            };
            match asked {
                Err(Gone(error)) => {
                    in_a_row = if began.elapsed() < QUICK { in_a_row + 1 } else { 0 };
                    if in_a_row > MOST_DEATHS {
                        return Err(self.cannot_talk(error));
                    }
                    tracing::debug!(%error, path, "the monitor died; its successor is asked");
                    tokio::time::sleep(AGAIN).await;
                }
                Ok((status, bytes)) if status.is_success() => {
                    return serde_json::from_slice(&bytes).map_err(|error| self.cannot_talk(error));
                }
                Ok((status, bytes)) => {
                    return match serde_json::from_slice::<Failure>(&bytes) {
                        Ok(failure) => Err(failure.into()),
                        Err(_) => Err(self.cannot_talk(format!(
                            "it answers {status}: {}",
                            String::from_utf8_lossy(&bytes).trim()
                        ))),
                    };
                }
            }
        }
    }

    /// A line to a monitor. One that was killed a moment ago still takes connections, and answers
    /// none: what cannot be asked twice is asked of one that has just answered.
    async fn raise(&self, stream: UnixStream, is_repeatable: bool) -> Result<Line, Gone> {
        let mut line = Line::open(stream).await?;
        if !is_repeatable {
            line.ask(Method::GET, "/v1/sandbox", Bytes::new()).await?;
        }
        Ok(line)
    }

    /// Connects to a socket of the monitor; one that died is replaced.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] when the sandbox needs no monitor any more; no monitor comes up.
    async fn reach(&self, socket: &str) -> Result<UnixStream, ClientError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut woken = false;
        loop {
            let error = match connect(&self.dir, socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let record = self.record()?;
            if record.is_at_rest() {
                return Err(ClientError::NotRunning { name: self.name.clone() });
            }
            if tokio::time::Instant::now() > deadline {
                return Err(self.cannot_talk(error));
            }
            if !woken && !crate::run_dir::is_alive(self.root.run(), &self.name) {
                // Its keeper may be about to do the same; one of the two monitors ends at once.
                wake(&self.root, &record).map_err(|error| self.cannot_talk(error))?;
                woken = true;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    pub(crate) fn cannot_talk(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Talk { name: self.name.clone(), source: source.into() }
    }
}

/// Connects to a socket in a folder by way of the folder's descriptor: its path may be too long.
async fn connect(dir: &Path, socket: &str) -> io::Result<UnixStream> {
    let folder = fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd())).await
}
