//! The link: moves the records of one session between a port and its [`Mux`].
//!
//! One future does both directions, so a port has one owner. It never waits for one direction before
//! it serves the other: a host that does not read must not keep us from reading, else two full
//! buffers face each other for ever.

use super::handshake::{Nonce, read_hello};
use super::mux::outflow::Side;
use super::mux::{Mux, MuxError};
use super::record::{Found, HEADER, Intake, SessionId, seal};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads for one record before the other direction gets its turn.
const READS: usize = 20;

/// Why a session ended.
#[derive(Debug, Error)]
pub(crate) enum End {
    /// The other end of the port is gone.
    #[error("the other end of the port is gone")]
    Closed,
    /// The port failed.
    #[error("the port failed: {0}")]
    Port(io::Error),
    /// Bytes that belong to no session of ours.
    #[error("bytes arrived that belong to no session")]
    Garbage,
    /// The peer broke the rules.
    #[error("{0}")]
    Peer(MuxError),
    /// The host begins another session.
    #[error("the host begins another session")]
    Hello(Nonce),
}

/// One session on a port.
pub(crate) struct Link<'a, P> {
    port: &'a mut P,
    intake: &'a mut Intake,
    mux: &'a Arc<Mux>,
    session: SessionId,
    side: Side,
    sending: Vec<u8>,
    sent: usize,
    /// Called once, at the first record of the session.
    confirmed: Option<Box<dyn FnOnce() + Send + 'a>>,
}

impl<'a, P: AsyncRead + AsyncWrite + Unpin> Link<'a, P> {
    pub(crate) fn new(
        port: &'a mut P,
        intake: &'a mut Intake,
        mux: &'a Arc<Mux>,
        session: SessionId,
        side: Side,
    ) -> Self {
        Link { port, intake, mux, session, side, sending: Vec::new(), sent: 0, confirmed: None }
    }

    /// Calls `f` when the first record of the session arrives.
    pub(crate) fn on_confirmed(mut self, f: impl FnOnce() + Send + 'a) -> Self {
        self.confirmed = Some(Box::new(f));
        self
    }

    /// Runs the session to its end.
    pub(crate) async fn run(mut self) -> End {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // What came with the handshake is served first.
        if let Err(end) = self.deliver() {
            return Poll::Ready(end);
        }
        match (self.poll_write(cx), self.poll_read(cx)) {
            (Err(end), _) | (_, Err(end)) => return Poll::Ready(end),
            (Ok(false), Ok(false)) => {}
            // There may be more, but other tasks get their turn first: a flood here must not hold up
            // a signal there.
            (Ok(true), _) | (_, Ok(true)) => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }

    /// Writes what can be written. True when at least one record is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut wrote = false;
        loop {
            if self.sent == self.sending.len() {
                match self.mux.poll_next(cx) {
                    Poll::Pending => return Ok(wrote),
                    Poll::Ready(outgoing) => {
                        let spent = std::mem::replace(&mut self.sending, outgoing.record);
                        self.mux.recycle(spent);
                        self.sent = 0;
                        if !outgoing.sealed {
                            seal(&mut self.sending, self.session).map_err(End::Port)?;
                        }
                    }
                }
            }
            match Pin::new(&mut *self.port).poll_write(cx, &self.sending[self.sent..]) {
                Poll::Pending => return Ok(wrote),
                Poll::Ready(Err(error)) => return Err(End::Port(error)),
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    wrote = true;
                }
            }
        }
    }

    /// Reads until there is a record, for it may take many reads: the guest's kernel gives a page at
    /// a time. True when something came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut came = false;
        for _ in 0..READS {
            let mut buf = ReadBuf::new(self.intake.space());
            match Pin::new(&mut *self.port).poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(came),
                Poll::Ready(Err(error)) => return Err(End::Port(error)),
                Poll::Ready(Ok(())) => {
                    let n = buf.filled().len();
                    if n == 0 {
                        return Err(End::Closed);
                    }
                    self.intake.filled(n);
                    came = true;
                    if self.deliver()? {
                        break;
                    }
                }
            }
        }
        Ok(came)
    }

    /// Hands whole records on. True when there was one.
    fn deliver(&mut self) -> Result<bool, End> {
        let mut delivered = false;
        loop {
            let (session, payload) = match self.intake.next() {
                Found::Incomplete => return Ok(delivered),
                // A hole in the bytes is a hole in the streams.
                Found::Garbage(_) => return Err(End::Garbage),
                Found::Record { session, payload } => (session, payload),
            };
            delivered = true;
            if session == self.session {
                if let Some(confirmed) = self.confirmed.take() {
                    confirmed();
                }
                self.mux.receive(payload, HEADER + payload.len()).map_err(End::Peer)?;
                continue;
            }
            match self.side {
                Side::Host => return Err(End::Garbage),
                Side::Guest => {
                    if let Some(nonce) = read_hello(session, payload) {
                        return Err(End::Hello(nonce));
                    }
                }
            }
        }
    }
}
