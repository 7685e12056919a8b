//! A further command as its caller sees it, whichever monitor looks after it.
//!
//! The caller reads and writes ends of pipes; tasks carry the bytes, and know how far each stream has
//! come. When the monitor dies, they find its successor and go on at that place: output is asked for
//! from the first byte that did not come, and input is sent again from the first byte the command has
//! not got. [`streams`](crate::monitor::streams) has the form of it.

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;

use super::input::{self, Source};
use super::{AGAIN, Client, ClientError};
use crate::monitor::STDIO_SOCKET;
use crate::monitor::api::{Exit, SignalRequest, SizeRequest, Started};
use crate::monitor::streams::{self, Opened};

/// A pipe between the caller and a task, in bytes.
const PIPE: usize = 64 << 10;

/// A further command in a sandbox.
#[derive(Debug)]
pub struct RemoteExec {
    client: Client,
    started: Started,
}

impl RemoteExec {
    pub(super) fn new(client: Client, started: Started) -> Self {
        Self { client, started }
    }

    /// Connects one of its outputs (`stdout` or `stderr`), once. What comes out ends with the stream.
    pub fn output(&self, stream: &'static str) -> DuplexStream {
        let (ours, theirs) = duplex(PIPE);
        let (client, token) = (self.client.clone(), self.started.token.clone());
        tokio::spawn(async move {
            if let Err(error) = carry_output(&client, &token, stream, ours).await {
                tracing::debug!(stream, error = &error as &dyn std::error::Error, "output ended");
            }
        });
        theirs
    }

    /// Connects its standard input, once. Shutting it down is the end of the input.
    pub fn input(&self) -> DuplexStream {
        let (ours, theirs) = duplex(PIPE);
        let (client, token) = (self.client.clone(), self.started.token.clone());
        tokio::spawn(async move {
            if let Err(error) = input::carry(&client, &Source::Exec(token), ours).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "input ended");
            }
        });
        theirs
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

/// Opens a stream at an offset; none when the command, or its VM, is there no more.
pub(super) async fn open(
    client: &Client,
    token: &str,
    stream: &str,
    offset: u64,
) -> Result<Option<(UnixStream, u64)>, ClientError> {
    loop {
        let mut socket = match client.reach(STDIO_SOCKET).await {
            Ok(socket) => socket,
            Err(ClientError::NotRunning { .. } | ClientError::Unknown { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match streams::open(&mut socket, token, stream, offset).await {
            Ok(Opened::At(at)) => return Ok(Some((socket, at))),
            Ok(Opened::Unknown) => return Ok(None),
            Ok(Opened::Busy) => {
                return Err(ClientError::InputTaken { name: client.name().to_owned() });
            }
            Err(error) => {
                tracing::debug!(%error, stream, "the monitor died; its successor is asked");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn carry_output(
    client: &Client,
    token: &str,
    stream: &str,
    mut into: DuplexStream,
) -> Result<(), ClientError> {
    let mut offset = 0;
    let mut buffer = Vec::new();
    while let Some((mut socket, at)) = open(client, token, stream, offset).await? {
        if at > offset {
            tracing::warn!(stream, bytes = at - offset, "output is missing here");
        }
        offset = at;
        loop {
            match streams::read_piece(&mut socket, &mut buffer).await {
                // The stream's own end.
                Ok(0) => return Ok(()),
                Ok(count) => {
                    offset += count as u64;
                    // The caller does not read any more: the command gets a broken pipe from whoever
                    // then closes the connection.
                    if into.write_all(&buffer).await.is_err() {
                        return Ok(());
                    }
                }
                Err(_) => break,
            }
        }
    }
    Ok(())
}
