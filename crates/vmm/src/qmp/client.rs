//! One connection to a control socket.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};

use super::{
    Event, Incoming, MAX_LINE, QmpError,
    command::{Command, QmpCapabilities},
    parse,
};
use crate::socket;

/// How many events a subscriber may lag behind before it misses the oldest.
const EVENT_BACKLOG: usize = 256;

/// A connection to a monitor's control socket; clones share it. It closes when the last is
/// dropped, so that another owner can connect: QEMU serves one at a time.
#[derive(Debug, Clone)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    events: broadcast::WeakSender<Event>,
    patience: Duration,
}

#[derive(Debug)]
struct Request {
    name: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl Client {
    /// Connects and waits at most `greeting` for the other end to greet; each command from then on
    /// has `patience`.
    ///
    /// # Errors
    /// [`QmpError::Connect`], [`QmpError::Timeout`] when no greeting comes (another client is
    /// being served), or what else a first command may fail with.
    pub async fn connect(
        path: &Path,
        greeting: Duration,
        patience: Duration,
    ) -> Result<Self, QmpError> {
        let negotiate = async {
            let stream = socket::connect(path).await.map_err(QmpError::Connect)?;
            let mut wire = Wire { stream, buffer: Vec::new(), scanned: 0 };
            match parse(&wire.next_line().await?)? {
                Incoming::Greeting => {}
                other => return Err(QmpError::Protocol(format!("no greeting but {other:?}"))),
            }
            Ok(wire)
        };
        let wire =
            timeout(greeting, negotiate).await.map_err(|_| QmpError::Timeout(greeting))??;
        let (requests, inbox) = mpsc::channel(16);
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let client = Self { requests, events: events.downgrade(), patience };
        // The task ends when the last client is dropped or the other end closes.
        tokio::spawn(serve(wire, inbox, events));
        client.run(QmpCapabilities {}).await?;
        Ok(client)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with the monitor's explanation, [`QmpError::Timeout`],
    /// [`QmpError::Closed`], [`QmpError::Protocol`] when the answer is not what it should be.
    pub async fn run<C: Command>(&self, command: C) -> Result<C::Reply, QmpError> {
        self.send(command, None).await
    }

    /// Runs a command that takes a file descriptor along.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub async fn run_with<C: Command>(
        &self,
        command: C,
        descriptor: OwnedFd,
    ) -> Result<C::Reply, QmpError> {
        self.send(command, Some(descriptor)).await
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Events from now on; the receiver sees [`broadcast::error::RecvError::Closed`] when the
    /// connection ends.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    async fn send<C: Command>(
        &self,
        command: C,
        descriptor: Option<OwnedFd>,
    ) -> Result<C::Reply, QmpError> {
        let arguments = serde_json::to_value(&command)
            .map_err(|error| QmpError::Protocol(format!("arguments of {}: {error}", C::NAME)))?;
        let (reply, answer) = oneshot::channel();
        let request = Request { name: C::NAME, arguments, descriptor, reply };
        let exchange = async {
            self.requests.send(request).await.map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)?
        };
        let value = timeout(self.patience, exchange)
            .await
            .map_err(|_| QmpError::Timeout(self.patience))??;
        serde_json::from_value(value)
            .map_err(|error| QmpError::Protocol(format!("answer to {}: {error}", C::NAME)))
    }
}

/// Who waits for an answer, by the id of the request.
type Waiting = HashMap<u64, oneshot::Sender<Result<Value, QmpError>>>;

/// Carries one connection until it ends; what still waits for an answer then is told so.
async fn serve(wire: Wire, mut inbox: mpsc::Receiver<Request>, events: broadcast::Sender<Event>) {
    let mut waiting = Waiting::new();
    carry(wire, &mut inbox, &events, &mut waiting).await;
    // In this order: whoever hears of the end finds the client closed.
    inbox.close();
    drop(waiting);
}

async fn carry(
    mut wire: Wire,
    inbox: &mut mpsc::Receiver<Request>,
    events: &broadcast::Sender<Event>,
    waiting: &mut Waiting,
) {
    let mut next = 0_u64;
    loop {
        tokio::select! {
            request = inbox.recv() => {
                let Some(Request { name, arguments, descriptor, reply }) = request else { return };
                waiting.retain(|_, reply| !reply.is_closed());
                next += 1;
                waiting.insert(next, reply);
                let mut line = json!({"execute": name, "arguments": arguments, "id": next})
                    .to_string()
                    .into_bytes();
                line.push(b'\n');
                tracing::trace!(command = name, id = next, "qmp");
                if wire.write(&line, descriptor).await.is_err() {
                    return;
                }
            }
            line = wire.next_line() => {
                let incoming = line.and_then(|line| parse(&line));
                let (id, result) = match incoming {
                    Ok(Incoming::Return { id, value }) => (id, Ok(value)),
                    Ok(Incoming::Error { id, class, desc }) =>
                        (id, Err(QmpError::Refused { class, desc })),
                    Ok(Incoming::Event(event)) => {
                        tracing::debug!(event = %event.name, data = %event.data, "qmp");
                        // Without a subscriber an event is of no interest.
                        let _ = events.send(event);
                        continue;
                    }
                    Ok(Incoming::Greeting) => continue,
                    Err(error) => {
                        tracing::debug!(%error, "control socket ended");
                        return;
                    }
                };
                if let Some(reply) = id.and_then(|id| waiting.remove(&id)) {
                    // The caller may have given up.
                    let _ = reply.send(result);
                }
            }
        }
    }
}

/// The socket and what has been read of the next line. Reading may be cancelled at any wait
/// without losing a byte.
struct Wire {
    stream: UnixStream,
    buffer: Vec<u8>,
    scanned: usize,
}

impl Wire {
    async fn next_line(&mut self) -> Result<Vec<u8>, QmpError> {
        loop {
            let fresh = &self.buffer[self.scanned..];
            if let Some(end) = fresh.iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + end + 1);
                self.scanned = 0;
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(QmpError::Protocol(format!("a line over {MAX_LINE} bytes")));
            }
            self.stream.readable().await.map_err(|_| QmpError::Closed)?;
            let mut chunk = [0; 4096];
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(QmpError::Closed),
            }
        }
    }

    /// Sends a line, the descriptor along with its first byte.
    async fn write(&mut self, line: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
        let mut rest = line;
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    let passed = descriptor.as_ref().map(|fd| [fd.as_fd()]);
                    if let Some(passed) = &passed {
                        ancillary.push(SendAncillaryMessage::ScmRights(passed));
                    }
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    Ok(sendmsg(&self.stream, &[io::IoSlice::new(rest)], &mut ancillary, flags)?)
                })
                .await?;
            descriptor = None;
            rest = &rest[sent..];
        }
        Ok(())
    }
}
