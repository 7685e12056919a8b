//! Random bytes for a guest that has just been born and has none.
//!
//! The guest's init dials port 1 and reads to end-of-file before it starts anything, so the
//! connection must be closed for the boot to go on.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::options::ENTROPY_BYTES;

/// Fills a buffer from the host's kernel.
fn random_bytes() -> io::Result<[u8; ENTROPY_BYTES]> {
    let mut bytes = [0; ENTROPY_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Sends the bytes and closes.
pub(crate) async fn feed(mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
    stream.write_all(&random_bytes()?).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_guest_gets_512_bytes_and_then_the_end() {
        let (host, mut guest) = tokio::io::duplex(64);
        let (fed, read) = tokio::join!(feed(host), async {
            let mut bytes = Vec::new();
            guest.read_to_end(&mut bytes).await.map(|_| bytes)
        });
        fed.unwrap();
        let bytes = read.unwrap();
        assert_eq!(bytes.len(), 512);
        assert_ne!(bytes, [0; 512]);
    }

    #[test]
    fn no_two_guests_get_the_same() {
        assert_ne!(random_bytes().unwrap(), random_bytes().unwrap());
    }
}
