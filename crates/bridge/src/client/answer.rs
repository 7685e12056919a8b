//! Answers on their way from the driver to whoever asked.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::calls::Settle;
use super::error::BridgeError;
use super::registry::Registry;
use crate::frame::MessageType;
use crate::message::incoming::{Fatal, decode_answer};
use crate::message::{Exited, Held, HeldAnswer, Response};
use crate::wire::Body;

/// An answer, or where the guest keeps it.
#[derive(Debug)]
pub(super) enum Answer<A> {
    Whole(Response<A>),
    Held(HeldAnswer),
}

/// Passes an answer to a caller that waits for it.
pub(super) struct Reply<A> {
    pub(super) request: MessageType,
    pub(super) sender: oneshot::Sender<Result<Answer<A>, BridgeError>>,
    /// The container whose id becomes free when the call fails, even if the
    /// caller is gone by then.
    pub(super) creates: Option<(Arc<Registry>, String)>,
}

impl<A> Reply<A> {
    fn pass(self, answer: Result<Answer<A>, BridgeError>) {
        let succeeded = matches!(&answer, Ok(Answer::Whole(response)) if response.result.is_ok());
        if let (Some((registry, id)), false) = (&self.creates, succeeded) {
            registry.deregister(id);
        }
        // A caller that gave up wants no answer.
        let _ = self.sender.send(answer);
    }
}

impl<A: Body + Send> Settle for Reply<A> {
    fn answer(self: Box<Self>, body: &[u8]) -> Result<(), Fatal> {
        let answer = match held(self.request, body) {
            Some(held) => Ok(Answer::Held(held)),
            None => decode_answer(self.request, body).map(Answer::Whole),
        };
        match answer {
            Ok(answer) => {
                self.pass(Ok(answer));
                Ok(())
            }
            // The driver ends the bridge, and the caller learns why from there.
            Err(fatal) => Err(fatal),
        }
    }

    fn fail(self: Box<Self>, error: BridgeError) {
        self.pass(Err(error));
    }

    fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Whether a body is the word of an answer that stays in the guest.
fn held(request: MessageType, body: &[u8]) -> Option<HeldAnswer> {
    let response = decode_answer::<Held>(request, body).ok()?;
    response.body.coracle.filter(|held| held.handle != 0)
}

/// The end of a process: `None` until it is known.
pub(super) type ExitResult = Option<Result<u32, BridgeError>>;

/// Passes the answer of a wait to everybody who asks for the exit.
pub(super) struct ExitReply {
    pub(super) tell: watch::Sender<ExitResult>,
}

impl Settle for ExitReply {
    fn answer(self: Box<Self>, body: &[u8]) -> Result<(), Fatal> {
        let response = decode_answer::<Exited>(MessageType::WAIT_FOR_PROCESS, body)?;
        self.tell.send_replace(Some(succeeded(response).map(|exited| exited.exit_code)));
        Ok(())
    }

    fn fail(self: Box<Self>, error: BridgeError) {
        self.tell.send_replace(Some(Err(error)));
    }

    fn is_abandoned(&self) -> bool {
        self.tell.is_closed()
    }
}

/// What was asked for, or the guest's reason why not.
pub(super) fn succeeded<A>(response: Response<A>) -> Result<A, BridgeError> {
    if response.result.is_ok() {
        return Ok(response.body);
    }
    let hresult = response.result;
    let message = match response.error_message.as_str() {
        "" => hresult.to_string(),
        text => text.to_owned(),
    };
    Err(BridgeError::Rpc { hresult, message, records: response.error_records })
}
