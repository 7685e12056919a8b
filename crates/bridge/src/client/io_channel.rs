//! A port on which the guest connects one standard stream.
//!
//! ```text
//!  Waiting --the guest dials--> Connected --end, or shut--> Closed
//!     '--cancelled, or the listener fails--> Failed
//! ```
//!
//! Reading and writing wait for the connection. Exactly one is accepted; the
//! listener is gone as soon as it is there. The guest dials once: after a connection
//! that broke before it said what it was for, another is not waited for long.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::channel::ChannelListener;
use crate::stdio::{Frame, HEADER_LEN};

/// How long a connection may take to say what it is for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the right connection may come after one that broke before it said what it was for. That
/// one may have been a straggler's; or it was the right one, and then no other comes.
const GRACE: Duration = Duration::from_secs(1);

/// Length of the first frame of a connection.
const OPEN_LEN: usize = HEADER_LEN + 4;

/// The host's end of one standard stream.
#[derive(Debug)]
pub(super) struct IoChannel {
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(JoinHandle<io::Result<UnixStream>>),
    Connected(UnixStream),
    Failed(io::ErrorKind),
    Closed,
}

impl IoChannel {
    /// Accepts the guest's connection on a listener. With a session number the
    /// connection must open with that number and the port; others are let go.
    /// Cancelling `until` fails a channel that is not connected yet.
    pub(super) fn accept(
        listener: ChannelListener,
        port: u32,
        session: Option<u64>,
        until: CancellationToken,
    ) -> Self {
        let accept = tokio::spawn(async move {
            tokio::select! {
                biased;
                connection = accept(&listener, port, session) => connection,
                () = until.cancelled() => Err(io::ErrorKind::NotConnected.into()),
            }
        });
        Self { state: State::Waiting(accept) }
    }

    fn poll_connected(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<&mut UnixStream>>> {
        if let State::Waiting(accept) = &mut self.state {
            self.state = match ready!(Pin::new(accept).poll(cx)) {
                Ok(Ok(stream)) => State::Connected(stream),
                Ok(Err(fault)) => State::Failed(fault.kind()),
                Err(_) => State::Failed(io::ErrorKind::NotConnected),
            };
        }
        Poll::Ready(match &mut self.state {
            State::Connected(stream) => Ok(Some(stream)),
            State::Failed(kind) => Err((*kind).into()),
            State::Closed | State::Waiting(_) => Ok(None),
        })
    }
}

/// Accepts connections until one is the expected one.
async fn accept(
    listener: &ChannelListener,
    port: u32,
    session: Option<u64>,
) -> io::Result<UnixStream> {
    let mut last = None;
    loop {
        let next = async {
            match last {
                Some(deadline) => tokio::time::timeout_at(deadline, listener.accept()).await,
                None => Ok(listener.accept().await),
            }
        };
        let Ok(accepted) = next.await else { return Err(io::ErrorKind::ConnectionAborted.into()) };
        let mut stream = accepted?;
        let Some(session) = session else { return Ok(stream) };
        match tokio::time::timeout(OPEN_TIMEOUT, opening(&mut stream)).await {
            Ok(Ok(Frame::Open { session: s, port: p })) if s == session && p == port => {
                return Ok(stream);
            }
            Ok(Err(fault)) => {
                tracing::debug!(port, %fault, "a stdio connection broke before it was opened");
                last.get_or_insert_with(|| tokio::time::Instant::now() + GRACE);
            }
            // A straggler of an older session, or nobody we know.
            Ok(Ok(_)) | Err(_) => tracing::debug!(port, "a foreign stdio connection was let go"),
        }
    }
}

async fn opening(stream: &mut UnixStream) -> io::Result<Frame> {
    let mut bytes = [0; OPEN_LEN];
    stream.read_exact(&mut bytes).await?;
    let mut bytes = BytesMut::from(bytes.as_slice());
    match Frame::decode(&mut bytes) {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(io::ErrorKind::InvalidData.into()),
        Err(fault) => Err(io::Error::new(io::ErrorKind::InvalidData, fault)),
    }
}

impl Drop for IoChannel {
    fn drop(&mut self) {
        if let State::Waiting(accept) = &self.state {
            accept.abort();
        }
    }
}

impl AsyncRead for IoChannel {
    /// Reading the end closes the connection, by which the guest knows that all
    /// was read.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let Some(stream) = ready!(self.poll_connected(cx))? else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(stream).poll_read(cx, into))?;
        if into.filled().len() == before && into.remaining() > 0 {
            self.state = State::Closed;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for IoChannel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_connected(cx))? {
            Some(stream) => Pin::new(stream).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_connected(cx))? {
            Some(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_connected(cx))? {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_connected(cx))? {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
