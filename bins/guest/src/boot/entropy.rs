//! Seed bytes from the host.
//!
//! A VM that has just booted has nothing random to tell; programs that ask would wait or, worse,
//! get the same answers in every clone. The host sends some bytes on a connection of their own and
//! closes it; each byte counts as eight bits.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::sys;

/// More than any host sends; the rest is left unread.
const LIMIT: u64 = 64 * 1024;

/// Reads `source` to its end and credits what came. Returns how many bytes that was.
pub async fn credit(source: impl AsyncRead + Unpin) -> Result<usize> {
    let mut seed = Vec::new();
    source.take(LIMIT).read_to_end(&mut seed).await.context("reading the entropy port")?;
    if seed.is_empty() {
        return Ok(0);
    }
    let random = File::open("/dev/urandom").context("opening /dev/urandom")?;
    sys::add_entropy(random.as_fd(), &seed).context("crediting entropy")?;
    Ok(seed.len())
}
