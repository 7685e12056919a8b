//! Calls: from a request's body to the answer's, through the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::answer::{Answer, ExitReply, ExitResult, Reply, succeeded};
use super::calls::{Call, Settle};
use super::connection::{ConnectOptions, Session};
use super::driver::Command;
use super::error::BridgeError;
use super::registry::Registry;
use crate::frame::GUEST_TO_HOST_NEGOTIATED;
use crate::message::incoming::{Dialect, decode_answer};
use crate::message::{
    AckExit, Capabilities, Chunk, ChunkData, ContainerId, CoracleGuest, CoracleHost, Create,
    GuestDefinedCapabilities, Negotiate, Negotiated, PROTOCOL_VERSION, Request, Response, Rpc,
    Start, SystemConfig, WAIT_FOREVER, WaitForProcess,
};
use crate::wire::Side;

/// Longest answer fetched in pieces, in bytes.
const LONG_ANSWER_MAX: u64 = 16 << 20;

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Once sent it is seen through, whatever becomes of the caller.
    Steady,
    /// The caller may give up; the answer is then of no interest.
    Cancellable,
}

/// What all handles of a connection share.
pub(super) struct Inner {
    pub(super) options: ConnectOptions,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) registry: Arc<Registry>,
    pub(super) next_port: AtomicU32,
    pub(super) protocol: u32,
    pub(super) capabilities: Capabilities,
    pub(super) defined: GuestDefinedCapabilities,
    pub(super) coracle: Option<CoracleGuest>,
}

impl Inner {
    pub(super) fn dialect(&self) -> Dialect {
        if self.coracle.is_some() { Dialect::Coracle } else { Dialect::Plain }
    }

    /// The session's number when the guest speaks our extension.
    pub(super) fn session(&self) -> Option<u64> {
        self.coracle.as_ref().map(|guest| guest.session)
    }

    pub(super) fn needs_sessions(&self, what: &'static str) -> Result<(), BridgeError> {
        match self.dialect() {
            Dialect::Coracle => Ok(()),
            Dialect::New | Dialect::Plain => Err(BridgeError::NoSessions(what)),
        }
    }

    pub(super) async fn negotiate(&self) -> Result<Negotiated, BridgeError> {
        let mut session = match self.options.session {
            Session::Plain => None,
            Session::Number(number) => Some(number),
            Session::Next => Some(1),
        };
        let mut retried = false;
        loop {
            let offer = session.map(|session| CoracleHost {
                version: CoracleHost::VERSION,
                session,
                max_frame: GUEST_TO_HOST_NEGOTIATED,
            });
            let limit = self.options.rpc_timeout;
            let request = Negotiate::new(offer);
            let id = ContainerId::default();
            let response = self.exchange(&id, request, Manner::Cancellable, limit, None).await?;
            let current = response.body.coracle.as_ref().map(|guest| guest.session);
            if let (false, Some(offered), Some(current)) =
                (response.result.is_ok(), session, current)
                && offered <= current
            {
                // Asked for the next session we try once more, as that should do.
                let next = current.checked_add(1).filter(|_| !retried);
                match (self.options.session, next) {
                    (Session::Next, Some(next)) => session = Some(next),
                    _ => return Err(BridgeError::StaleSession { offered, current }),
                }
                retried = true;
                continue;
            }
            let negotiated = succeeded(response)?;
            if negotiated.version != PROTOCOL_VERSION {
                return Err(BridgeError::UnexpectedVersion(negotiated.version));
            }
            return Ok(negotiated);
        }
    }

    /// Some guests (of Windows) want to hear of the VM itself as of a container.
    pub(super) async fn introduce(&self) -> Result<(), BridgeError> {
        let vm = ContainerId::vm();
        if self.capabilities.send_host_create_message {
            let request = Create::new(SystemConfig { system_type: "Container".to_owned() });
            self.cancellable(&vm, request).await?;
            if self.capabilities.send_host_start_message {
                self.cancellable(&vm, Start {}).await?;
            }
        }
        Ok(())
    }

    /// A call that is seen through.
    pub(super) async fn steady<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let limit = self.options.rpc_timeout;
        succeeded(self.exchange(id, request, Manner::Steady, limit, None).await?)
    }

    /// A call whose caller may give up.
    pub(super) async fn cancellable<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let limit = self.options.rpc_timeout;
        succeeded(self.exchange(id, request, Manner::Cancellable, limit, None).await?)
    }

    /// A cancellable call that is given up after `limit`.
    pub(super) async fn within<R: Rpc>(
        &self,
        limit: Duration,
        operation: &'static str,
        id: &ContainerId,
        request: R,
    ) -> Result<R::Answer, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        match tokio::time::timeout(limit, self.cancellable(id, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(BridgeError::DeadlineExceeded {
                operation,
                container: id.clone(),
                seconds: limit.as_secs(),
            }),
        }
    }

    pub(super) async fn exchange<R: Rpc>(
        &self,
        id: &ContainerId,
        request: R,
        manner: Manner,
        limit: Duration,
        creates: Option<(Arc<Registry>, String)>,
    ) -> Result<Response<R::Answer>, BridgeError>
    where
        R::Answer: Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let reply = Reply { request: R::REQUEST, sender, creates };
        self.send(id, request, manner, Some(limit), Box::new(reply))?;
        match self.receive(answer).await? {
            Answer::Whole(response) => Ok(response),
            Answer::Held(held) => {
                let text = self.fetch(held.handle, held.length).await?;
                decode_answer(R::REQUEST, text.as_bytes())
                    .map_err(|fatal| BridgeError::LongAnswer(fatal.to_string()))
            }
        }
    }

    /// Hands a call to the driver.
    fn send<R: Rpc>(
        &self,
        id: &ContainerId,
        body: R,
        manner: Manner,
        limit: Option<Duration>,
        settle: Box<dyn Settle>,
    ) -> Result<(), BridgeError> {
        let mut request = Request::new(id.clone(), body);
        if self.protocol != 0 {
            request.trace = self.options.trace.clone();
        }
        let body = match request.encode(Side::Host) {
            Ok(body) => body,
            Err(fault) => {
                let error = BridgeError::Encode(Arc::new(fault));
                settle.fail(error.clone());
                return Err(error);
            }
        };
        let cancellable = matches!(manner, Manner::Cancellable);
        let call = Call { request: R::REQUEST, limit, cancellable, settle };
        match self.commands.send(Command::Call { body, call }) {
            Ok(()) => Ok(()),
            Err(refused) => {
                let cause = self.registry.cause();
                if let Command::Call { call, .. } = refused.0 {
                    call.settle.fail(cause.clone());
                }
                Err(cause)
            }
        }
    }

    async fn receive<T>(
        &self,
        answer: oneshot::Receiver<Result<T, BridgeError>>,
    ) -> Result<T, BridgeError> {
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                // The driver dropped the call together with the bridge.
                self.registry.closed.cancelled().await;
                Err(self.registry.cause())
            }
        }
    }

    /// Fetches a long answer from the guest, piece by piece.
    async fn fetch(&self, handle: u32, length: u64) -> Result<String, BridgeError> {
        if length > LONG_ANSWER_MAX {
            return Err(BridgeError::LongAnswer(format!("{length} bytes are too many")));
        }
        let vm = ContainerId::vm();
        let mut text = String::new();
        while (text.len() as u64) < length {
            let request = Chunk { handle, offset: text.len() as u64 };
            let limit = self.options.rpc_timeout;
            let (sender, answer) = oneshot::channel();
            let reply: Reply<ChunkData> = Reply { request: Chunk::REQUEST, sender, creates: None };
            self.send(&vm, request, Manner::Cancellable, Some(limit), Box::new(reply))?;
            let piece = match self.receive(answer).await? {
                Answer::Whole(response) => succeeded(response)?.text,
                Answer::Held(_) => String::new(),
            };
            if piece.is_empty() {
                let at = text.len();
                return Err(BridgeError::LongAnswer(format!("it stops at {at} of {length}")));
            }
            text.push_str(&piece);
        }
        Ok(text)
    }

    /// Sends a wait for a process and leaves it pending.
    pub(super) fn wait_for_process(
        &self,
        id: &ContainerId,
        pid: u32,
    ) -> watch::Receiver<ExitResult> {
        let (tell, exit) = watch::channel(None);
        let request = WaitForProcess { process_id: pid, timeout_in_ms: WAIT_FOREVER };
        // A failure reaches the receiver.
        let _ = self.send(id, request, Manner::Steady, None, Box::new(ExitReply { tell }));
        exit
    }

    /// Tells the guest that an exit is recorded, and with `discard` that the streams
    /// may go, too. Nothing to tell a plain guest.
    pub(super) async fn acknowledge(
        &self,
        id: &ContainerId,
        process_id: Option<u32>,
        discard: bool,
    ) -> Result<(), BridgeError> {
        if self.coracle.is_some() {
            self.steady(id, AckExit { process_id, discard }).await?;
        }
        Ok(())
    }

    /// The next port for a standard stream.
    pub(super) fn next_port(&self) -> Result<u32, BridgeError> {
        self.next_port
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |port| port.checked_add(1))
            .map_err(|_| BridgeError::PortsUsedUp)
    }
}
