//! How a connection comes about: by a dial from the host or from the guest.

use super::super::folder::{self, ChannelDir, VSOCK, read_line};
use super::super::mux::ChannelStream;
use super::is_control;
use super::lane::Session;
use super::splice::{Scratch, splice};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// How long a listener on the host with a full backlog holds up its dialler.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(2);

/// The sessions of both lanes.
#[derive(Clone)]
pub(super) struct Sessions {
    pub(super) control: Session,
    pub(super) streams: Session,
}

impl Sessions {
    /// Opens a stream as soon as there is a session, and waits for the guest's answer.
    async fn open(mut self, port: u32) -> io::Result<ChannelStream> {
        let sessions = if is_control(port) { &mut self.control } else { &mut self.streams };
        loop {
            let mux = sessions.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
            let Some(mux) = mux else { continue };
            match mux.open(port) {
                Ok(stream) => {
                    stream.accepted().await?;
                    return Ok(stream);
                }
                // The session ended this very moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    sessions.changed().await.map_err(io::Error::other)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Serves one connection to `D/vsock`. Closing it without an OK is the refusal.
pub(super) async fn from_host(
    mut socket: UnixStream,
    sessions: Sessions,
    limit: Duration,
    scratch: Arc<Scratch>,
) {
    let deadline = Instant::now() + limit;
    let opened = timeout_at(deadline, async {
        let line = read_line(&mut socket).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let port = line.strip_prefix("CONNECT ").and_then(|port| port.trim_end().parse().ok());
        let stream = sessions.open(port.ok_or(io::ErrorKind::InvalidData)?).await?;
        socket.write_all(format!("OK {}\n", stream.number()).as_bytes()).await?;
        io::Result::Ok(stream)
    });
    match opened.await {
        Ok(Ok(stream)) => splice(socket, stream, &scratch).await,
        Ok(Err(error)) => debug!(%error, "a dial of the host failed"),
        Err(_) => debug!("a dial of the host took too long"),
    }
}

/// Serves one dial of the guest. Dropping the stream unaccepted is the refusal.
pub(super) async fn from_guest(
    dir: ChannelDir,
    port: u32,
    stream: ChannelStream,
    scratch: Arc<Scratch>,
) {
    match connect_listener(&dir, port).await {
        Ok(socket) => {
            stream.accept();
            splice(socket, stream, &scratch).await;
        }
        Err(error) => debug!(port, %error, "a dial of the guest found no listener"),
    }
}

async fn connect_listener(dir: &ChannelDir, port: u32) -> io::Result<UnixStream> {
    let name = format!("{VSOCK}_{port}");
    let deadline = Instant::now() + BACKLOG_PATIENCE;
    loop {
        match folder::connect(dir.path(), &name).await {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}
