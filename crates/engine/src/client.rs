//! A live sandbox as everybody but its monitor sees it: found by name, asked over its API.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::monitor::api::{
    AttachRequest, Attached, Command, Exit, Failure, Kind, LeaveRequest, PlugSpec, Plugged,
    RemoveRequest, SandboxView, SignalRequest, SizeRequest, Started, StopRequest, Update, Usage,
};
use crate::monitor::{API_SOCKET, OUTPUT_FILE, STDIO_SOCKET};
use crate::root::Root;
use crate::run_dir::sweep;

/// Why a sandbox could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No sandbox has this name, nor one that begins so.
    #[error("there is no sandbox named {name}")]
    Unknown {
        /// The name given.
        name: String,
    },
    /// Several begin so.
    #[error("{name} could be any of {}", candidates.join(", "))]
    Ambiguous {
        /// The name given.
        name: String,
        /// Whose names begin so.
        candidates: Vec<String>,
    },
    /// Its monitor does not answer.
    #[error("cannot talk to the sandbox {name}")]
    Talk {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its monitor did not do it.
    #[error("{}", failure.message)]
    Failed {
        /// What it says.
        failure: Box<Failure>,
        /// Its causes, as a chain.
        source: Option<Box<Cause>>,
    },
}

/// One cause of a failure on the other side.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl Cause {
    fn chain(causes: &[String]) -> Option<Box<Cause>> {
        let (first, rest) = causes.split_first()?;
        Some(Box::new(Cause { message: first.clone(), source: Cause::chain(rest) }))
    }
}

impl ClientError {
    /// What the other side, or we, know this failure by.
    pub fn code(&self) -> &str {
        match self {
            Self::Unknown { .. } => "E-SANDBOX-UNKNOWN",
            Self::Ambiguous { .. } => "E-SANDBOX-AMBIGUOUS",
            Self::Talk { .. } => "E-MONITOR",
            Self::Failed { failure, .. } => &failure.code,
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("see what there is: `coracle ls`".to_owned()),
            Self::Ambiguous { .. } => Some("write more of the name".to_owned()),
            Self::Talk { .. } => None,
            Self::Failed { failure, .. } => failure.help.clone(),
        }
    }

    /// The exit code that belongs to the command, if this is its failure.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Failed { failure, .. } => failure.exit_code,
            Self::Unknown { .. } | Self::Ambiguous { .. } | Self::Talk { .. } => None,
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        let source = Cause::chain(&failure.causes);
        Self::Failed { failure: Box::new(failure), source }
    }
}

/// A sandbox with a monitor.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    dir: PathBuf,
}

/// The names of all sandboxes with a monitor; what dead ones left is swept away first.
pub fn names(root: &Root) -> Vec<String> {
    crate::network::sweep(root);
    for name in sweep(root.run()) {
        tracing::info!(sandbox = name, "swept what a dead owner left");
    }
    let Ok(entries) = fs::read_dir(root.run()) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join(API_SOCKET).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

impl Client {
    /// Finds a sandbox by its name, or by a beginning that is nobody else's.
    ///
    /// # Errors
    /// [`ClientError::Unknown`], [`ClientError::Ambiguous`].
    pub fn find(root: &Root, name: &str) -> Result<Self, ClientError> {
        let all = names(root);
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
        Ok(Self { dir: root.run().join(&found), name: found })
    }

    /// Its whole name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the command has written, older part first.
    pub fn output_files(&self) -> [PathBuf; 2] {
        let newer = self.dir.join(OUTPUT_FILE);
        [self.dir.join(format!("{OUTPUT_FILE}.1")), newer]
    }

    /// What there is to say about it.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn show(&self) -> Result<SandboxView, ClientError> {
        self.get("/v1/sandbox").await
    }

    /// Waits for its command's end.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn wait(&self) -> Result<u32, ClientError> {
        self.get::<Exit>("/v1/exit").await.map(|exit| exit.exit_code)
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
        self.post::<_, Exit>("/v1/stop", &StopRequest { timeout }).await.map(|exit| exit.exit_code)
    }

    /// Ends it at once and removes everything.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn remove(&self) -> Result<(), ClientError> {
        self.ask::<(), ()>(Method::DELETE, "/v1/sandbox", None).await
    }

    /// What it uses.
    ///
    /// # Errors
    /// The guest does not answer; the monitor cannot be asked.
    pub async fn stats(&self) -> Result<Usage, ClientError> {
        self.get("/v1/stats").await
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

    /// What is plugged in.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn plugs(&self) -> Result<Vec<Plugged>, ClientError> {
        self.get("/v1/plugs").await
    }

    /// Plugs something in.
    ///
    /// # Errors
    /// It cannot be plugged in; the monitor cannot be asked.
    pub async fn plug(&self, spec: &PlugSpec) -> Result<Plugged, ClientError> {
        self.post("/v1/plugs", spec).await
    }

    /// Takes something out.
    ///
    /// # Errors
    /// It is not there or is not let go of; the monitor cannot be asked.
    pub async fn unplug(&self, kind: Kind, key: &str) -> Result<Plugged, ClientError> {
        self.post("/v1/plugs/remove", &RemoveRequest { kind, key: key.to_owned() }).await
    }

    /// The networks it is on.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn networks(&self) -> Result<Vec<Attached>, ClientError> {
        self.get("/v1/networks").await
    }

    /// Puts it on one more network.
    ///
    /// # Errors
    /// It cannot be; the monitor cannot be asked.
    pub async fn attach_network(
        &self,
        request: &AttachRequest,
    ) -> Result<Vec<Attached>, ClientError> {
        self.post("/v1/networks", request).await
    }

    /// Takes it off a network.
    ///
    /// # Errors
    /// It is not on it or is not let go of; the monitor cannot be asked.
    pub async fn detach_network(&self, network: &str) -> Result<(), ClientError> {
        let asked = LeaveRequest { network: network.to_owned() };
        self.post("/v1/networks/remove", &asked).await
    }

    /// Starts a further command.
    ///
    /// # Errors
    /// It cannot be started; the monitor cannot be asked.
    pub async fn exec(&self, command: &Command) -> Result<RemoteExec, ClientError> {
        let started: Started = self.post("/v1/execs", command).await?;
        Ok(RemoteExec { client: self.clone(), started })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask::<(), T>(Method::GET, path, None).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| self.cannot_talk(e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "coracle")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.cannot_talk(error))?;
        let stream = connect(&self.dir, API_SOCKET).await.map_err(|e| self.cannot_talk(e))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.cannot_talk(error))?;
        let driver = tokio::spawn(connection);
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let answer = answer.await;
        driver.abort();
        let (status, bytes) = answer.map_err(|error| self.cannot_talk(error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.cannot_talk(error));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(failure.into()),
            Err(_) => Err(self.cannot_talk(format!(
                "it answers {status}: {}",
                String::from_utf8_lossy(&bytes).trim()
            ))),
        }
    }

    fn cannot_talk(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Talk { name: self.name.clone(), source: source.into() }
    }
}

/// A further command in a sandbox.
#[derive(Debug)]
pub struct RemoteExec {
    client: Client,
    started: Started,
}

impl RemoteExec {
    /// Connects one of its streams (`stdin`, `stdout` or `stderr`), each once.
    ///
    /// # Errors
    /// The monitor is gone.
    pub async fn stream(&self, name: &str) -> Result<UnixStream, ClientError> {
        let failed = |error: io::Error| self.client.cannot_talk(error);
        let mut stream = connect(&self.client.dir, STDIO_SOCKET).await.map_err(failed)?;
        let line = format!("{} {name}\n", self.started.token);
        stream.write_all(line.as_bytes()).await.map_err(failed)?;
        Ok(stream)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It was lost with its VM; the monitor cannot be asked.
    pub async fn wait(&self) -> Result<u32, ClientError> {
        let path = format!("/v1/execs/{}/exit", self.started.id);
        self.client.get::<Exit>(&path).await.map(|exit| exit.exit_code)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        let path = format!("/v1/execs/{}/signal", self.started.id);
        self.client.post(&path, &SignalRequest { signal }).await
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// It has no terminal; the monitor cannot be asked.
    pub async fn resize(&self, width: u16, height: u16) -> Result<(), ClientError> {
        let path = format!("/v1/execs/{}/size", self.started.id);
        self.client.post(&path, &SizeRequest { width, height }).await
    }
}

/// Connects to a socket in a folder by way of the folder's descriptor: its path may be too long.
async fn connect(dir: &Path, socket: &str) -> io::Result<UnixStream> {
    let folder = fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd())).await
}
