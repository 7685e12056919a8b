//! The loopback interface: part of every machine, up before anyone looks.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::sys;

/// Brings `lo` up; the kernel then gives it 127.0.0.1 and ::1 by itself.
pub fn loopback_up() -> Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a socket to configure lo")?;
    sys::interface_up(any.as_fd(), c"lo").context("bringing lo up")
}
