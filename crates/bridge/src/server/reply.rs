//! From a request's frame to its answer's.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::guest::{Link, Shared};
use super::held::{self, HeldAnswers};
use super::service::{ServiceError, Stop};
use crate::frame::{Frame, MessageType};
use crate::hresult::Hresult;
use crate::message::{
    AckExit, ActivityId, AttachStdio, Attached, Chunk, ChunkData, Create, Created,
    DeleteContainerState, Done, ExecuteProcess, Executed, Exited, GetProperties, Held, HeldAnswer,
    ListState, Modify, PropertiesAnswer, Request, ResizeConsole, Response, Rpc, ShutdownGraceful,
    SignalProcess, Stacks, Start, State, WaitForProcess,
};
use crate::wire::{Body, JsonString, Side};

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

/// A request's body, or why there is none.
type Opened<B> = Result<Request<B>, ServiceError>;

/// Reads a request.
pub(super) fn open<B: Rpc>(frame: &Frame) -> Opened<B> {
    Request::decode(&frame.body).map_err(|fault| {
        let text = format!("reading the {}: {fault}", frame.message_type);
        ServiceError::new(Hresult::INVALID_JSON, text)
    })
}

/// The activity a request belongs to, as far as the request can be read.
fn activity(frame: &Frame) -> ActivityId {
    match Request::<Done>::decode(&frame.body) {
        Ok(request) => request.activity_id,
        Err(_) => ActivityId::default(),
    }
}

/// The answer's frame.
pub(super) fn finish<A: Body + Default>(frame: &Frame, result: Result<A, ServiceError>) -> Frame {
    let response = match result {
        Ok(body) => Response::ok(&activity(frame), body),
        Err(fault) => return refuse(frame, &fault, A::default()),
    };
    encode(frame, &response)
}

/// The answer to a request that failed, with a body all the same.
pub(super) fn refuse<A: Body + Default>(frame: &Frame, fault: &ServiceError, body: A) -> Frame {
    let text = &fault.message[..fault.message.floor_char_boundary(TEXT_MAX)];
    let mut response = Response::failed(&activity(frame), fault.hresult, text);
    response.body = body;
    encode(frame, &response)
}

/// The answer to a message this guest does not know, or not yet.
pub(super) fn unknown(frame: &Frame) -> Frame {
    let text = format!("the {} is not supported", frame.message_type);
    finish::<Done>(frame, Err(ServiceError::not_implemented(text)))
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
    /// Works on a request and sends its answer.
    pub(super) async fn work(&self, frame: &Frame) {
        let answer = self.answer(frame).await;
        let answer = self.fit(frame, answer);
        // A connection that is gone needs no answer.
        let _ = self.link.outgoing.send(answer).await;
    }

    /// Waits for a process as long as the connection lives, and sends the answer.
    pub(super) async fn wait(&self, frame: &Frame, ended: &CancellationToken) {
        let request = match open::<WaitForProcess>(frame) {
            Ok(request) => request,
            Err(fault) => {
                let _ = self.link.outgoing.send(finish::<Exited>(frame, Err(fault))).await;
                return;
            }
        };
        let process = request.body.process_id;
        let result = tokio::select! {
            result = self.shared.wait(&request.container_id, request.body) => result,
            () = ended.cancelled() => {
                self.shared.table().wait_ends(process, false, self.link.facts.extended);
                return;
            }
        };
        let known = !matches!(&result, Err(fault) if is_absent(fault.hresult));
        let exited = result.is_ok();
        let answer = finish(frame, result.map(|exit_code| Exited { exit_code }));
        let sent = self.link.outgoing.send(answer).await.is_ok();
        if known {
            let delivered = exited && sent;
            self.shared.table().wait_ends(process, delivered, self.link.facts.extended);
            self.shared.notify_exit(request.container_id.as_str()).await;
        }
    }

    async fn answer(&self, frame: &Frame) -> Frame {
        match frame.message_type {
            MessageType::CREATE => finish(frame, self.create(open(frame)).await),
            // On Linux a container starts with its first process; any id will do.
            MessageType::START => finish(frame, open::<Start>(frame).map(|_| Done {})),
            MessageType::EXECUTE_PROCESS => finish(frame, self.execute(open(frame)).await),
            MessageType::SIGNAL_PROCESS => finish(frame, self.signal(open(frame)).await),
            MessageType::RESIZE_CONSOLE => finish(frame, self.resize(open(frame)).await),
            MessageType::SHUTDOWN_GRACEFUL => {
                finish(frame, self.shutdown(open(frame), Stop::Graceful).await)
            }
            MessageType::SHUTDOWN_FORCED => {
                finish(frame, self.shutdown(open(frame), Stop::Forced).await)
            }
            MessageType::GET_PROPERTIES => finish(frame, self.properties(open(frame)).await),
            MessageType::MODIFY_SETTINGS => finish(frame, self.modify(open(frame)).await),
            MessageType::DUMP_STACKS => finish(frame, self.dump_stacks().await),
            MessageType::DELETE_CONTAINER_STATE => finish(frame, self.delete(open(frame)).await),
            _ if self.link.facts.extended => self.answer_extended(frame).await,
            _ => unknown(frame),
        }
    }

    /// The messages of our own.
    async fn answer_extended(&self, frame: &Frame) -> Frame {
        match frame.message_type {
            MessageType::LIST_STATE => finish(frame, self.list_state(open(frame))),
            MessageType::ACK_EXIT => finish(frame, self.acknowledge(open(frame))),
            MessageType::ATTACH_STDIO => finish(frame, self.attach(open(frame)).await),
            MessageType::CHUNK => finish(frame, self.chunk(open(frame))),
            _ => unknown(frame),
        }
    }

    async fn create(&self, request: Opened<Create>) -> Result<Created, ServiceError> {
        let request = request?;
        let config = request.body.container_config.0.ok_or(Hresult::INVALID_JSON)?;
        self.shared.create(&request.container_id, config).await?;
        Ok(Created::default())
    }

    async fn execute(&self, request: Opened<ExecuteProcess>) -> Result<Executed, ServiceError> {
        let request = request?;
        let process_id =
            self.shared.execute(&request.container_id, request.body, &self.link).await?;
        Ok(Executed { process_id })
    }

    async fn signal(&self, request: Opened<SignalProcess>) -> Result<Done, ServiceError> {
        let request = request?;
        self.shared.signal(&request.container_id, request.body).await?;
        Ok(Done {})
    }

    async fn resize(&self, request: Opened<ResizeConsole>) -> Result<Done, ServiceError> {
        let request = request?;
        self.shared.resize(&request.container_id, request.body).await?;
        Ok(Done {})
    }

    async fn shutdown(
        &self,
        request: Opened<ShutdownGraceful>,
        stop: Stop,
    ) -> Result<Done, ServiceError> {
        self.shared.shutdown(&request?.container_id, stop).await?;
        Ok(Done {})
    }

    async fn properties(
        &self,
        request: Opened<GetProperties>,
    ) -> Result<PropertiesAnswer, ServiceError> {
        let request = request?;
        let query = request.body.query.0.unwrap_or_default();
        let properties = self.shared.properties(&request.container_id, query).await?;
        Ok(PropertiesAnswer { properties: JsonString(Some(properties)) })
    }

    async fn modify(&self, request: Opened<Modify>) -> Result<Done, ServiceError> {
        let request = request?;
        let settings = request.body.request.ok_or(Hresult::INVALID_JSON)?;
        self.shared.modify(&request.container_id, settings).await?;
        Ok(Done {})
    }

    /// Answered even when its body cannot be read: it is asked in times of trouble.
    async fn dump_stacks(&self) -> Result<Stacks, ServiceError> {
        let mut guest_stacks = self.shared.service.dump_stacks().await?;
        if !self.link.facts.extended {
            // A plain host takes one frame and no more; the begin is the better part.
            let most = self.limit as usize / (2 * ESCAPED);
            guest_stacks.truncate(guest_stacks.floor_char_boundary(most));
        }
        Ok(Stacks { guest_stacks })
    }

    async fn delete(&self, request: Opened<DeleteContainerState>) -> Result<Done, ServiceError> {
        self.shared.delete(&request?.container_id).await?;
        Ok(Done {})
    }

    fn list_state(&self, request: Opened<ListState>) -> Result<State, ServiceError> {
        request.map(|_| self.shared.list_state())
    }

    fn acknowledge(&self, request: Opened<AckExit>) -> Result<Done, ServiceError> {
        let request = request?;
        self.shared.acknowledge(&request.container_id, request.body);
        Ok(Done {})
    }

    async fn attach(&self, request: Opened<AttachStdio>) -> Result<Attached, ServiceError> {
        let request = request?;
        self.shared.attach_stdio(&request.container_id, request.body, &self.link).await
    }

    fn chunk(&self, request: Opened<Chunk>) -> Result<ChunkData, ServiceError> {
        let Chunk { handle, offset } = request?.body;
        let most = self.limit as usize / ESCAPED / 2;
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
            return finish(frame, Ok(Held { coracle: Some(answer) }));
        }
        let text = format!("the answer of {length} bytes is too long");
        finish::<Done>(frame, Err(ServiceError::failed(text)))
    }
}

/// Whether the process was not there to be waited for.
fn is_absent(hresult: Hresult) -> bool {
    hresult == Hresult::NO_SUCH_SYSTEM || hresult == Hresult::NOT_FOUND
}
