//! Moves bytes between a unix socket and a stream, each direction with its own end.
//!
//! Nothing is read before there is room for it on the other side, so a slow reader holds up its own
//! writer and nobody else. Reads from the socket go through one buffer for all connections; bytes from
//! the guest go from the stream's queue straight to the socket, and the guest gets its window back
//! only when they are there.

use super::super::mux::{ChannelStream, Piece};
use super::super::record::MAX_PAYLOAD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::net::UnixStream;
use tracing::debug;

/// A buffer that is only used between two awaits, so one serves all.
pub(super) struct Scratch {
    bytes: Mutex<Box<[u8]>>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Scratch { bytes: Mutex::new(vec![0; MAX_PAYLOAD].into_boxed_slice()) }
    }
}

/// Carries a connection to its end. However that comes about, both sides learn of it: the guest by
/// what dropping a stream means, the host by the close of its socket.
pub(super) async fn splice(socket: UnixStream, stream: ChannelStream, scratch: &Scratch) {
    let inward = async {
        loop {
            match poll_fn(|cx| poll_inward(&socket, &stream, scratch, cx)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if stream.is_stopped() => {
                    debug!(%error, "the guest reads no more");
                    // The host's writer learns of it; what the guest has sent still arrives.
                    rustix::net::shutdown(&socket, Shutdown::Read)?;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        stream.shut()?;
        if is_hung_up(&socket) {
            // Nobody reads what the guest still sends.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    let outward = async {
        loop {
            let mut bytes = poll_fn(|cx| stream.poll_take(cx)).await?;
            if bytes.is_empty() {
                rustix::net::shutdown(&socket, Shutdown::Write)?;
                return Ok(());
            }
            while !bytes.is_empty() {
                socket.writable().await?;
                let n = write(&socket, &bytes)?;
                bytes.advance(n);
                stream.release(n);
            }
            stream.put_back(bytes);
        }
    };
    // The first failure ends both directions.
    let end: io::Result<((), ())> = async { tokio::try_join!(inward, outward) }.await;
    drop(end);
}

/// One read from the socket into the stream. False at the end of file.
fn poll_inward(
    socket: &UnixStream,
    stream: &ChannelStream,
    scratch: &Scratch,
    cx: &mut Context<'_>,
) -> Poll<io::Result<bool>> {
    loop {
        let room = ready!(stream.poll_room(cx))?;
        ready!(socket.poll_read_ready(cx))?;
        let mut bytes = scratch.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = room.min(bytes.len());
        match socket.try_read(&mut bytes[..room]) {
            Ok(0) => return Poll::Ready(Ok(false)),
            Ok(n) => {
                stream.send(&bytes[..n]);
                return Poll::Ready(Ok(true));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

fn write(socket: &UnixStream, bytes: &Piece) -> io::Result<usize> {
    let (first, second) = bytes.slices();
    let slices = [io::IoSlice::new(first), io::IoSlice::new(second)];
    match socket.try_write_vectored(&slices) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// Whether the peer has closed its socket, not merely shut down its writing half.
fn is_hung_up(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}
