//! 9P shares: a mount on one end of a socket pair, whose other end is pumped to a port of the host.
//!
//! ```text
//!   kernel's 9p client ── socket pair ── pump (a thread) ── channel ── the share's server
//! ```
//!
//! The pump has a thread of its own: whoever in this process waits for the share must not be the one
//! who carries it. When the connection is lost the pump closes its end, and the kernel answers every
//! request with an error: nothing hangs. When the share is unmounted the kernel closes the other end,
//! and the pump ends.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use coracle_bridge::channel::ChannelStream;
use nix::mount::MsFlags;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional_with_sizes;

use super::mount::{Mount, MountError, Mounter};

/// The longest message, in bytes, its header included. More brings nothing over this channel.
const MESSAGE: usize = 65536;

/// Why a share could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Plan9Error {
    /// A name that could say more than a name in the mount's options.
    #[error("the share name {name:?} is not made of letters, digits, `-`, `_` and `.`")]
    Name {
        /// The name.
        name: String,
    },
    /// The pump could not be made.
    #[error("making the pump of a 9P share")]
    Pump(#[source] io::Error),
    /// The kernel refused the mount.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Mounts the share that answers on `server`.
pub fn attach(
    mounter: &Mounter,
    server: ChannelStream,
    name: &str,
    target: &Path,
    read_only: bool,
) -> Result<(), Plan9Error> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.chars().all(is_plain) {
        return Err(Plan9Error::Name { name: name.to_owned() });
    }
    mounter.load_module("9pnet_fd");
    let (ours, kernels) = UnixStream::pair().map_err(Plan9Error::Pump)?;
    for end in [&ours, &kernels] {
        // A buffer smaller than a message only makes it slower.
        let _ = setsockopt(end, sockopt::SndBuf, &(MESSAGE * 2));
    }
    ours.set_nonblocking(true).map_err(Plan9Error::Pump)?;
    std::thread::Builder::new()
        .name("9p".to_owned())
        .spawn(move || {
            if let Err(error) = pump(ours, server) {
                tracing::info!(%error, "a 9P share lost its server");
            }
        })
        .map_err(Plan9Error::Pump)?;
    let fd = kernels.as_raw_fd();
    // hcsshim's guest adds `noload` to a read-only one, which 9p has no use for.
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let mut data =
        format!("trans=fd,rfdno={fd},wfdno={fd},version=9p2000.L,msize={MESSAGE},access=client");
    if !name.is_empty() {
        data.push_str(",aname=");
        data.push_str(name);
    }
    // The mount takes references of its own to the descriptor; ours is closed on the way out.
    mounter.mount(&Mount { from: target, target, kind: "9p", flags, data: &data, mode: 0o700 })?;
    Ok(())
}

fn pump(kernels: UnixStream, mut server: ChannelStream) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut kernels = tokio::net::UnixStream::from_std(kernels)?;
        copy_bidirectional_with_sizes(&mut kernels, &mut server, MESSAGE, MESSAGE).await?;
        Ok(())
    })
}
