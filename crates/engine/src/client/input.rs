//! A command's standard input on its way to whichever monitor looks after it.
//!
//! When the monitor dies, input is sent again to its successor from the first byte the command has not
//! got, for which the last [`KEPT`] bytes are kept.

use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::exec::open;
use super::{Client, ClientError};
use crate::monitor::streams::{self, INPUT, SIGN};

/// Bytes that are carried at once.
const PIECE: usize = 64 << 10;

/// Input that is kept until it must have arrived: what the monitor's ring, its sockets and its buffers
/// can hold.
const KEPT: usize = 4 << 20;

/// Whose input it is.
#[derive(Debug)]
pub(super) enum Source {
    /// That of an exec, by its token: it goes as it is, and ends with the connection.
    Exec(String),
    /// That of a container's own command, for as long as we are attached: it goes in pieces.
    Attached(String),
}

impl Source {
    fn token(&self) -> String {
        match self {
            Self::Exec(token) => token.clone(),
            Self::Attached(container) => format!("{SIGN}{container}"),
        }
    }

    fn stream(&self) -> &'static str {
        match self {
            Self::Exec(_) => "stdin",
            Self::Attached(_) => INPUT,
        }
    }

    async fn send(&self, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Exec(_) => to.write_all(bytes).await,
            Self::Attached(_) => {
                for piece in bytes.chunks(PIECE) {
                    streams::write_piece(to, piece).await?;
                }
                Ok(())
            }
        }
    }

    async fn end(&self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        match self {
            Self::Exec(_) => to.shutdown().await,
            Self::Attached(_) => streams::write_piece(to, &[]).await,
        }
    }
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

/// Carries input until its end has arrived, or the command takes no more.
pub(super) async fn carry(
    client: &Client,
    source: &Source,
    mut from: DuplexStream,
) -> Result<(), ClientError> {
    let (token, stream) = (source.token(), source.stream());
    let mut kept: Option<Kept> = None;
    let mut is_over = false;
    let mut buffer = vec![0; PIECE];
    while let Some((socket, at)) = open(client, &token, stream, 0).await? {
        let (mut answers, mut socket) = socket.into_split();
        // Others may have written before we came.
        let kept = kept.get_or_insert_with(|| Kept { first: at, ..Kept::default() });
        let Some(again) = kept.after(at) else {
            tracing::warn!("input was lost with the monitor");
            return Ok(());
        };
        let sent = async {
            source.send(&mut socket, &again).await?;
            while !is_over {
                let count = from.read(&mut buffer).await.unwrap_or(0);
                if count == 0 {
                    is_over = true;
                    break;
                }
                kept.push(&buffer[..count]);
                source.send(&mut socket, &buffer[..count]).await?;
            }
            source.end(&mut socket).await
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
    match source {
        Source::Exec(_) => Ok(()),
        // It has none, or has ended.
        Source::Attached(name) => Err(ClientError::NoInput { name: name.clone() }),
    }
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
