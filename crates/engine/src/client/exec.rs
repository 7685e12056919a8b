//! A further command as its caller sees it, whichever monitor looks after it.
//!
//! The caller reads and writes ends of pipes; tasks carry the bytes, and know how far each stream has
//! come. When the monitor dies, they find its successor and go on at that place: output is asked for
//! from the first byte that did not come, and input is sent again from the first byte the command has
//! not got, for which the last [`KEPT`] bytes are kept. [`streams`](crate::monitor::streams) has the
//! form of it.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;

use super::{AGAIN, Client, ClientError};
use crate::monitor::STDIO_SOCKET;
use crate::monitor::api::{Exit, SignalRequest, SizeRequest, Started};
use crate::monitor::streams::{self, Opened};

/// A pipe between the caller and a task, in bytes.
const PIPE: usize = 64 << 10;

/// Input that is kept until it must have arrived: what the monitor's ring, its sockets and its buffers
/// can hold.
const KEPT: usize = 4 << 20;

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
            if let Err(error) = carry_input(&client, &token, ours).await {
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
async fn open(
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

/// Input that was sent, as far as it may have to be sent again.
#[derive(Debug, Default)]
struct Kept {
    /// The offset of the first byte kept.
    first: u64,
    bytes: VecDeque<u8>,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..excess);
        self.first += excess as u64;
    }

    /// What follows an offset; none if that is not kept any more.
    fn after(&self, offset: u64) -> Option<Vec<u8>> {
        let from = usize::try_from(offset.checked_sub(self.first)?).ok()?;
        (from <= self.bytes.len()).then(|| self.bytes.iter().skip(from).copied().collect())
    }
}

async fn carry_input(
    client: &Client,
    token: &str,
    mut from: DuplexStream,
) -> Result<(), ClientError> {
    let mut kept = Kept::default();
    let mut is_over = false;
    let mut buffer = vec![0; PIPE];
    while let Some((socket, at)) = open(client, token, "stdin", kept.first).await? {
        let (mut answers, mut socket) = socket.into_split();
        let Some(again) = kept.after(at) else {
            tracing::warn!("input was lost with the monitor");
            return Ok(());
        };
        let sent = async {
            socket.write_all(&again).await?;
            while !is_over {
                let count = from.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    is_over = true;
                    break;
                }
                kept.push(&buffer[..count]);
                socket.write_all(&buffer[..count]).await?;
            }
            socket.shutdown().await
        };
        let arrived = tokio::select! {
            sent = sent => match sent {
                Ok(()) => streams::has_arrived(&mut answers).await,
                Err(_) => false,
            },
            // The monitor has nothing to say before the end: it died, or nobody takes input any more.
            arrived = streams::has_arrived(&mut answers) => arrived,
        };
        if arrived {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_has_not_got_is_kept_up_to_a_bound() {
        let mut kept = Kept::default();
        kept.push(b"abcdef");
        assert_eq!(kept.after(0).unwrap(), b"abcdef");
        assert_eq!(kept.after(4).unwrap(), b"ef");
        assert_eq!(kept.after(6).unwrap(), b"");
        assert_eq!(kept.after(7), None);
        kept.push(&vec![b'x'; KEPT]);
        assert_eq!((kept.first, kept.after(5)), (6, None));
        assert_eq!(kept.after(6).unwrap().len(), KEPT);
    }
}
