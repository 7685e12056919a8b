//! From a request's frame to its answer's.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::guest::{Link, Shared};
use super::held::{self, HeldAnswers};
use super::service::{ServiceError, Stop};
use crate::frame::Frame;
use crate::hresult::Hresult;
use crate::message::incoming::{Call, Dialect, Refusal};
use crate::message::{
    ActivityId, Chunk, ChunkData, Created, Done, Executed, Exited, Held, HeldAnswer,
    PropertiesAnswer, Request, Response, Stacks, WaitForProcess,
};
use crate::wire::{Body, Side};

/// Longest error text sent, in bytes. It goes out twice and may grow by escaping.
const TEXT_MAX: usize = 4096;

/// Most that JSON escaping lengthens a text.
const ESCAPED: usize = 6;

/// What a request needs to be answered.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    /// Largest frame the host takes.
    pub(super) limit: u32,
    pub(super) held: HeldAnswers,
}

/// The answer's frame.
pub(super) fn finish<A: Body + Default>(
    frame: &Frame,
    activity: &ActivityId,
    result: Result<A, ServiceError>,
) -> Frame {
    match result {
        Ok(body) => encode(frame, &Response::ok(activity, body)),
        Err(fault) => refuse(frame, activity, &fault, Done {}),
    }
}

/// The answer to a request that failed, with a body all the same.
pub(super) fn refuse<A: Body + Default>(
    frame: &Frame,
    activity: &ActivityId,
    fault: &ServiceError,
    body: A,
) -> Frame {
    let text = &fault.message[..fault.message.floor_char_boundary(TEXT_MAX)];
    let Response { result, error_message, activity_id, error_records, body: Done {} } =
        Response::failed(activity, fault.hresult, text);
    encode(frame, &Response { result, error_message, activity_id, error_records, body })
}

/// The answer to a request this guest cannot serve, or not yet.
pub(super) fn decline(frame: &Frame, refusal: Refusal) -> Frame {
    let Refusal { result, message, activity_id } = refusal;
    finish::<Done>(frame, &activity_id, Err(ServiceError::new(result, message)))
}

fn encode<A: Body + Default>(frame: &Frame, response: &Response<A>) -> Frame {
    let message_type = frame.message_type.response();
    let body = response.encode(Side::Guest).unwrap_or_else(|fault| {
        tracing::error!(%fault, %message_type, "encoding an answer");
        // E_FAIL; what cannot be written cannot be explained on the wire either.
        br#"{"Result":-2147467259}"#.to_vec()
    });
    Frame { message_type, id: frame.id, body }
}

impl Exchange {
    /// What both ends agreed on.
    pub(super) fn dialect(&self) -> Dialect {
        if self.link.facts.extended { Dialect::Coracle } else { Dialect::Plain }
    }

    /// Works on a request and sends its answer.
    pub(super) async fn work(&self, frame: &Frame, call: Call) {
        let answer = self.answer(frame, call).await;
        let answer = self.fit(frame, answer);
        self.send(answer).await;
    }

    /// Sends an answer; a connection that is gone needs none.
    pub(super) async fn send(&self, answer: Frame) -> bool {
        self.link.outgoing.send(answer).await.is_ok()
    }

    /// Waits for a process as long as the connection lives, and sends the answer.
    pub(super) async fn wait(
        &self,
        frame: &Frame,
        request: Request<WaitForProcess>,
        ended: &CancellationToken,
    ) {
        let process = request.body.process_id;
        let extended = self.link.facts.extended;
        let result = tokio::select! {
            result = self.shared.wait(&request.container_id, request.body) => result,
            () = ended.cancelled() => {
                self.shared.table().wait_ends(process, false, extended);
                return;
            }
        };
        let known = !matches!(&result, Err(fault) if is_absent(fault.hresult));
        let exited = result.is_ok();
        let result = result.map(|exit_code| Exited { exit_code });
        let sent = self.send(finish(frame, &request.activity_id, result)).await;
        if known {
            self.shared.table().wait_ends(process, exited && sent, extended);
            self.shared.notify_exit(request.container_id.as_str()).await;
        }
    }

    async fn answer(&self, frame: &Frame, call: Call) -> Frame {
        let shared = &self.shared;
        match call {
            Call::Create(Request { container_id, activity_id, body, .. }) => {
                let result = shared.create(&container_id, body).await;
                finish(frame, &activity_id, result.map(|()| Created::default()))
            }
            // On Linux a container starts with its first process; any id will do.
            Call::Start(Request { activity_id, .. }) => finish(frame, &activity_id, Ok(Done {})),
            Call::Execute(Request { container_id, activity_id, body, .. }) => {
                let result = shared.execute(&container_id, body, &self.link).await;
                finish(frame, &activity_id, result.map(|process_id| Executed { process_id }))
            }
            Call::Signal(Request { container_id, activity_id, body, .. }) => {
                done(frame, &activity_id, shared.signal(&container_id, body).await)
            }
            Call::Resize(Request { container_id, activity_id, body, .. }) => {
                done(frame, &activity_id, shared.resize(&container_id, body).await)
            }
            Call::ShutdownGraceful(Request { container_id, activity_id, .. }) => {
                done(frame, &activity_id, shared.shutdown(&container_id, Stop::Graceful).await)
            }
            Call::ShutdownForced(Request { container_id, activity_id, .. }) => {
                done(frame, &activity_id, shared.shutdown(&container_id, Stop::Forced).await)
            }
            Call::Properties(Request { container_id, activity_id, body, .. }) => {
                let result = shared.properties(&container_id, body).await;
                let result = result.map(|found| PropertiesAnswer { properties: found.into() });
                finish(frame, &activity_id, result)
            }
            Call::Modify(Request { container_id, activity_id, body, .. }) => {
                done(frame, &activity_id, shared.modify(&container_id, body).await)
            }
            Call::DumpStacks(Request { activity_id, .. }) => {
                finish(frame, &activity_id, self.dump_stacks().await)
            }
            Call::DeleteContainerState(Request { container_id, activity_id, .. }) => {
                done(frame, &activity_id, shared.delete(&container_id).await)
            }
            Call::ListState(Request { activity_id, .. }) => {
                finish(frame, &activity_id, Ok(shared.list_state()))
            }
            Call::AckExit(Request { container_id, activity_id, body, .. }) => {
                shared.acknowledge(&container_id, body);
                finish(frame, &activity_id, Ok(Done {}))
            }
            Call::AttachStdio(Request { container_id, activity_id, body, .. }) => {
                let result = shared.attach_stdio(&container_id, body, &self.link).await;
                finish(frame, &activity_id, result)
            }
            Call::Chunk(Request { activity_id, body, .. }) => {
                finish(frame, &activity_id, self.chunk(body))
            }
            // A second negotiation is refused when it is read, waits and the VM's own
            // shutdown never come here, and a saved or restored VM needs nothing.
            Call::Negotiate(Request { activity_id, .. })
            | Call::Wait(Request { activity_id, .. })
            | Call::Lifecycle(Request { activity_id, .. }) => {
                let text = format!("{} is not supported here", frame.message_type);
                done(frame, &activity_id, Err(ServiceError::not_implemented(text)))
            }
        }
    }

    async fn dump_stacks(&self) -> Result<Stacks, ServiceError> {
        let mut guest_stacks = self.shared.service.dump_stacks().await?;
        if !self.link.facts.extended {
            // A plain host takes one frame and no more; the begin is the better part.
            let most = self.limit as usize / (2 * ESCAPED);
            guest_stacks.truncate(guest_stacks.floor_char_boundary(most));
        }
        Ok(Stacks { guest_stacks })
    }

    fn chunk(&self, Chunk { handle, offset }: Chunk) -> Result<ChunkData, ServiceError> {
        let most = self.limit as usize / (2 * ESCAPED);
        let text = self.held.piece(handle, offset, most).ok_or(Hresult::NOT_FOUND)?;
        Ok(ChunkData { text })
    }

    /// Keeps back an answer that does not fit a frame, and sends word of it.
    fn fit(&self, frame: &Frame, answer: Frame) -> Frame {
        if answer.size() <= u64::from(self.limit) {
            return answer;
        }
        let length = answer.body.len();
        if let (true, 0..=held::LENGTH_MAX, Ok(text)) =
            (self.link.facts.extended, length, String::from_utf8(answer.body))
        {
            let handle = self.held.keep(text);
            let answer = HeldAnswer { handle, length: length as u64 };
            return finish(frame, &ActivityId::default(), Ok(Held { coracle: Some(answer) }));
        }
        let text = format!("the answer of {length} bytes is too long");
        done(frame, &ActivityId::default(), Err(ServiceError::failed(text)))
    }
}

fn done(frame: &Frame, activity: &ActivityId, result: Result<(), ServiceError>) -> Frame {
    finish(frame, activity, result.map(|()| Done {}))
}

/// Whether the process was not there to be waited for.
fn is_absent(hresult: Hresult) -> bool {
    hresult == Hresult::NO_SUCH_SYSTEM || hresult == Hresult::NOT_FOUND
}
