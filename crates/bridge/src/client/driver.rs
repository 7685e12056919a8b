//! The task that owns the connection.
//!
//! Handles send it calls; it puts them on the wire, matches the answers, watches
//! the deadlines and tells of exits. It ends when it is told to, when the last
//! handle is gone and nothing obliges it to go on, or with the bridge. Reading,
//! writing and waiting are polled side by side, so a guest that reads slowly
//! cannot keep us from reading what it says.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::calls::{Call, Calls};
use super::error::{BridgeError, BridgeFault};
use super::registry::Registry;
use crate::frame::{Frame, FrameReader, GUEST_TO_HOST, HOST_TO_GUEST};
use crate::message::incoming::{self, Dialect, Fatal, FromGuest};

/// What a handle asks of the driver.
pub(super) enum Command {
    /// Makes a call.
    Call {
        /// The body of its request.
        body: Vec<u8>,
        /// Everything else.
        call: Call,
    },
    /// The negotiation is done.
    Agree {
        /// What both ends speak now.
        dialect: Dialect,
        /// The largest frame the guest sends.
        max_frame: u32,
    },
    /// Ends the bridge at once.
    Close,
}

struct Driver {
    calls: Calls,
    outgoing: BytesMut,
    dialect: Dialect,
    registry: Arc<Registry>,
}

/// Runs the bridge to its end.
pub(super) async fn drive<S>(
    stream: S,
    commands: mpsc::UnboundedReceiver<Command>,
    registry: Arc<Registry>,
) where
    S: AsyncRead + AsyncWrite,
{
    let mut driver = Driver {
        calls: Calls::default(),
        outgoing: BytesMut::new(),
        dialect: Dialect::New,
        registry,
    };
    let cause = match driver.run(stream, commands).await {
        Ok(()) => BridgeError::Closed,
        Err(fault) => {
            tracing::warn!(fault = &fault as &dyn std::error::Error, "the bridge was given up");
            BridgeError::Killed(Arc::new(fault))
        }
    };
    // The cause first: who hears of the end must find it.
    driver.registry.end(cause.clone());
    for call in driver.calls.drain() {
        call.settle.fail(cause.clone());
    }
}

impl Driver {
    async fn run<S>(
        &mut self,
        stream: S,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<(), BridgeFault>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (read, mut write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, GUEST_TO_HOST);
        let mut handles = true;
        let mut flushed = true;
        loop {
            if !handles && self.outgoing.is_empty() && flushed && !self.calls.oblige() {
                return Ok(());
            }
            let deadline = self.calls.next_deadline();
            tokio::select! {
                command = commands.recv(), if handles => match command {
                    Some(Command::Call { body, call }) => self.send(body, call),
                    Some(Command::Agree { dialect, max_frame }) => {
                        self.dialect = dialect;
                        reader.set_limit(max_frame);
                    }
                    Some(Command::Close) => return Ok(()),
                    None => handles = false,
                },
                frame = reader.next() => match frame? {
                    Some(frame) => self.receive(frame)?,
                    None => return Ok(()),
                },
                pushed = push(&mut write, &mut self.outgoing, &mut flushed),
                    if !self.outgoing.is_empty() || !flushed =>
                {
                    pushed.map_err(BridgeFault::Write)?;
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.calls.expire(Instant::now())?;
                },
            }
        }
    }

    fn send(&mut self, body: Vec<u8>, call: Call) {
        let message_type = call.request;
        let id = self.calls.begin(call, Instant::now());
        match (Frame { message_type, id, body }).to_bytes(HOST_TO_GUEST) {
            Ok(bytes) => self.outgoing.extend_from_slice(&bytes),
            Err(fault) => {
                if let Some(call) = self.calls.take(id) {
                    call.settle.fail(BridgeError::TooLarge(Arc::new(fault)));
                }
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> Result<(), BridgeFault> {
        match incoming::from_guest(frame, self.dialect)? {
            FromGuest::Response { id, message_type, body } => {
                let Some(call) = self.calls.take(id) else {
                    return Err(Fatal::UnknownCall { id, message_type }.into());
                };
                call.settle.answer(&body)?;
            }
            FromGuest::Notification(notification) => {
                let id = notification.container_id.as_str();
                let known = self.registry.exited(id, notification.body.kind);
                // A session may hear of containers nobody has resumed yet.
                if !known && self.dialect != Dialect::Coracle {
                    return Err(Fatal::UnknownContainer(id.to_owned()).into());
                }
            }
        }
        Ok(())
    }
}

/// Writes some of the outgoing bytes, or flushes when all are written. May be
/// cancelled without losing a byte.
async fn push<W>(write: &mut W, outgoing: &mut BytesMut, flushed: &mut bool) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    if outgoing.is_empty() {
        write.flush().await?;
        *flushed = true;
        return Ok(());
    }
    *flushed = false;
    match write.write_buf(outgoing).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(()),
    }
}
