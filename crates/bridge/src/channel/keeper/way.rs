//! How a lane gets to the guest: through QEMU's socket of its port, or by a dial over AF_VSOCK.
//!
//! A dial goes through the socket of a `vhost-device-vsock`, which outlives QEMU and does not tell of
//! its end. So QEMU's own socket is held beside it: it closes when QEMU is gone. Half a dial that is
//! given up can cost the daemon a descriptor or its mind, so a dial waits for as long as QEMU lives:
//! a guest that still boots answers as soon as it listens. One in the moment in which QEMU hands the guest's
//! rings over ends the daemon's only thread; so a guest that boots is not dialled before it has knocked.

use super::super::VSOCK_PORT;
use super::super::folder::{connect_path, read_line};
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A lane's bytes to and from the guest.
pub(super) struct Reached {
    pub(super) bytes: UnixStream,
    /// Ends with QEMU, where the bytes do not.
    life: Option<UnixStream>,
}

impl Reached {
    /// The guest is at the other end of QEMU's own socket.
    pub(super) fn through(bytes: UnixStream) -> Self {
        Self { bytes, life: None }
    }

    /// Dials the guest through the daemon's socket; `life` is QEMU's.
    ///
    /// # Errors
    /// There is no daemon, or nobody listens in the guest; `UnexpectedEof` also when QEMU is gone.
    pub(super) async fn dial(daemon: &Path, mut life: UnixStream) -> io::Result<Self> {
        let mut bytes = connect_path(daemon).await?;
        bytes.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
        let answer = tokio::select! {
            answer = read_line(&mut bytes) => answer?,
            () = end_of(&mut life) => None,
        };
        match answer {
            Some(line) if line.starts_with("OK ") => Ok(Self { bytes, life: Some(life) }),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Until the guest writes a byte into the port that it does not use otherwise: it listens, and what
    /// carries it is up. Ready also when QEMU is gone, which the dial finds out.
    pub(super) async fn knock(life: &mut UnixStream) {
        // Both are told by the dial that follows.
        let _ = life.read(&mut [0; 16]).await;
    }

    /// Both halves: the bytes, and what is ready when QEMU is gone and the bytes would not tell.
    pub(super) fn split(&mut self) -> (&mut UnixStream, impl Future<Output = ()> + '_) {
        let life = self.life.as_mut();
        let over = async move {
            match life {
                Some(life) => end_of(life).await,
                None => std::future::pending().await,
            }
        };
        (&mut self.bytes, over)
    }
}

/// Until QEMU closes its end. What a guest writes to a port that is not in use is nobody's.
async fn end_of(life: &mut UnixStream) {
    let mut waste = [0; 4096];
    while life.read(&mut waste).await.is_ok_and(|count| count > 0) {}
}
