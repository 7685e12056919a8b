//! The streams of further commands on the wire, both ends.
//!
//! Each stream is a connection of its own to `stdio.sock`. The client says `TOKEN STREAM OFFSET\n`, the
//! monitor answers `OK OFFSET\n`, or `NO\n` when there is no such stream. Then:
//!
//! * output comes in pieces, each with its length before it in four bytes, the highest first; a piece
//!   of no length is the stream's end. A connection that ends otherwise was cut off.
//! * the input of a command that has a log is asked for with its container's name after a
//!   [`SIGN`] for a token, and [`INPUT`] for a stream. It goes in such pieces too; one of no length is
//!   its end, and a connection that is cut off leaves it open. `BUSY\n` says that somebody else has it.
//! * other input goes as it is, from the offset the monitor answered; shutting the connection down is the
//!   stream's end. When all of it has arrived the monitor says `DONE\n`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest line.
const LINE: usize = 100;

/// The largest piece.
const PIECE: usize = 1 << 20;

/// What a token begins with that is the name of a container; no token of an exec does.
pub const SIGN: char = '@';

/// The input of a command that has a log.
pub const INPUT: &str = "input";

/// What became of opening a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It goes on here.
    At(u64),
    /// There is no such stream.
    Unknown,
    /// Somebody else has it.
    Busy,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) token: String,
    pub(super) stream: String,
    pub(super) offset: u64,
}

/// Asks for a stream.
///
/// # Errors
/// The connection was cut off.
pub async fn open(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: &str,
    stream: &str,
    offset: u64,
) -> io::Result<Opened> {
    socket.write_all(format!("{token} {stream} {offset}\n").as_bytes()).await?;
    let line = read_line(socket).await?;
    match line.as_str() {
        "NO" => return Ok(Opened::Unknown),
        "BUSY" => return Ok(Opened::Busy),
        _ => {}
    }
    let at = line.strip_prefix("OK ").and_then(|at| at.parse().ok());
    at.map(Opened::At).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads what a client asks for.
pub(super) async fn read_asked(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let line = read_line(socket).await?;
    let mut words = line.split(' ');
    let mut next = || words.next().map(str::to_owned).ok_or(io::ErrorKind::InvalidData);
    let (token, stream) = (next()?, next()?);
    let offset = next()?.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Asked { token, stream, offset })
}

/// Answers a client.
pub(super) async fn answer(
    socket: &mut (impl AsyncWrite + Unpin),
    opened: Opened,
) -> io::Result<()> {
    let line = match opened {
        Opened::At(offset) => format!("OK {offset}\n"),
        Opened::Unknown => "NO\n".to_owned(),
        Opened::Busy => "BUSY\n".to_owned(),
    };
    socket.write_all(line.as_bytes()).await
}

/// Writes a piece of a stream; one of no length is its end.
///
/// # Errors
/// The connection was cut off.
pub async fn write_piece(socket: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    socket.write_all(&length.to_be_bytes()).await?;
    socket.write_all(bytes).await
}

/// Reads a piece of a stream into `buffer`, and says how long it is; 0 is its end.
///
/// # Errors
/// The connection was cut off; a piece that was torn is lost with it.
pub async fn read_piece(
    socket: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> io::Result<usize> {
    let length = usize::try_from(socket.read_u32().await?).unwrap_or(usize::MAX);
    if length > PIECE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    buffer.resize(length, 0);
    socket.read_exact(buffer).await
}

/// Says that all of an input has arrived.
pub(super) async fn say_arrived(socket: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    socket.write_all(b"DONE\n").await
}

/// Whether the monitor says so; false when the connection was cut off.
pub async fn has_arrived(socket: &mut (impl AsyncRead + Unpin)) -> bool {
    read_line(socket).await.is_ok_and(|line| line == "DONE")
}

/// Reads up to the first newline and not a byte more: what follows is the stream's.
async fn read_line(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = socket.read_u8().await?;
        if byte == b'\n' {
            return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        if line.len() == LINE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_understand_each_other() {
        let (mut client, mut monitor) = tokio::io::duplex(4096);
        let asking = open(&mut client, "token", "stdout", 7);
        let answering = async {
            let asked = read_asked(&mut monitor).await.unwrap();
            assert_eq!((asked.stream.as_str(), asked.offset), ("stdout", 7));
            answer(&mut monitor, Opened::At(9)).await.unwrap();
            write_piece(&mut monitor, b"piece").await.unwrap();
            write_piece(&mut monitor, b"").await.unwrap();
        };
        let (opened, ()) = tokio::join!(asking, answering);
        assert_eq!(opened.unwrap(), Opened::At(9));
        let mut buffer = Vec::new();
        assert_eq!(read_piece(&mut client, &mut buffer).await.unwrap(), 5);
        assert_eq!(buffer, b"piece");
        assert_eq!(read_piece(&mut client, &mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_off_is_no_end() {
        let (mut client, mut monitor) = tokio::io::duplex(4096);
        monitor.write_all(&[0, 0, 0, 9, b'x']).await.unwrap();
        drop(monitor);
        assert!(read_piece(&mut client, &mut Vec::new()).await.is_err());
        assert!(!has_arrived(&mut client).await);
    }
}
