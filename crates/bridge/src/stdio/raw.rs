//! Streams as bare bytes, for a host that does not know our frames.
//!
//! Such a host takes the end of its connection for the end of the stream, so
//! there is nothing to resume: a lost connection closes the stream for its
//! writer as a closed pipe does.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::StdioError;
use super::ring::OutputRing;
use super::sender::{Sent, SharedRing};

/// Writes a ring's bytes to `connection` until the stream ends, half-closes, and
/// waits for the host to close: it does so when it has read everything.
///
/// # Errors
/// When the connection breaks; the ring is stopped then.
pub async fn serve_output_raw<S>(ring: &SharedRing, connection: S) -> Result<(), StdioError>
where
    S: AsyncRead + AsyncWrite,
{
    let result = carry(ring, connection).await;
    if !matches!(result, Err(StdioError::Superseded)) {
        ring.stop();
    }
    result
}

async fn carry<S>(ring: &SharedRing, connection: S) -> Result<(), StdioError>
where
    S: AsyncRead + AsyncWrite,
{
    let lease = ring.attach();
    let (mut read, mut write) = tokio::io::split(connection);
    let mut cursor = ring.inspect(OutputRing::base);
    loop {
        let lost = |source| StdioError::Lost { at: cursor, source };
        match lease.send(cursor, false, &mut write, |_| []).await? {
            Sent::Data(length) => {
                cursor += length as u64;
                ring.acknowledge(cursor)?;
            }
            Sent::Gap(to) => cursor = to,
            Sent::Eof => {
                write.shutdown().await.map_err(lost)?;
                break;
            }
            Sent::Stopped => return Ok(()),
        }
    }
    // What a host says on an output connection has no meaning; only its end has.
    let mut ignored = [0; 512];
    loop {
        match read.read(&mut ignored).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The host may close with a reset: it read everything or does not care.
            Err(fault) if fault.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(source) => return Err(StdioError::Lost { at: cursor, source }),
        }
    }
}
