//! What each end makes of a frame: pure decisions, without a connection.
//!
//! The host must not go on with a guest it does not understand: whatever it cannot place is
//! [`Fatal`] and ends the bridge. The guest answers instead: whatever it cannot serve is a
//! [`Refusal`], an answer with a result code, and the bridge goes on.

use super::envelope::Rpc;
use super::{
    AckExit, ActivityId, AttachStdio, Chunk, ContainerConfig, ContainerNotification, Create,
    DeleteContainerState, Done, DumpStacks, ExecuteProcess, GetProperties, LifecycleNotification,
    ListState, Modify, Negotiate, Notification, PROTOCOL_VERSION, ProcessParameters,
    PropertiesQuery, Request, ResizeConsole, Resource, ResourceError, Response, ShutdownForced,
    ShutdownGraceful, SignalProcess, Start, Verb, VsockStdioRelay, WaitForProcess,
};
use crate::frame::{Category, Frame, Kind, MessageType};
use crate::hresult::Hresult;
use crate::wire::{Body, Json, WireError};

/// What the two ends agreed on so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Nothing: only NegotiateProtocol is understood.
    #[default]
    New,
    /// Version 4 as hcsshim speaks it.
    Plain,
    /// Version 4 with our extension.
    Coracle,
}

/// Why a host has to end its bridge.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// Neither a response nor a notification a host knows.
    #[error("the guest sent {0}, which is not for a host")]
    UnknownMessage(MessageType),
    /// A response nobody asked for.
    #[error("the guest answered call {id}, which is not open, with a {message_type}")]
    UnknownCall {
        /// The id in the response.
        id: u64,
        /// Its type.
        message_type: MessageType,
    },
    /// A response that cannot be read.
    #[error("the guest's answer to a {request} cannot be read")]
    Response {
        /// The request it answers.
        request: MessageType,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// A response whose activity is no GUID.
    #[error("the guest's answer to a {request} names activity {activity:?}, which is no GUID")]
    Activity {
        /// The request it answers.
        request: MessageType,
        /// What it names.
        activity: String,
    },
    /// A notification that cannot be read.
    #[error("a notification of the guest cannot be read")]
    Notification(#[source] WireError),
    /// A notification about a container the host does not know.
    #[error("the guest sent a notification about container {0:?}, which is not known")]
    UnknownContainer(String),
}

/// A frame from a guest.
#[derive(Clone, Debug, PartialEq)]
pub enum FromGuest {
    /// An answer to the call with this id; [`decode_response`] reads the body.
    Response {
        /// Pairs it with its request.
        id: u64,
        /// Its type; only its kind and category count, as the id says the rest.
        message_type: MessageType,
        /// Its text.
        body: Vec<u8>,
    },
    /// A container has ended.
    Notification(Notification<ContainerNotification>),
}

/// What a host makes of a frame.
///
/// # Errors
/// The bridge must end.
pub fn from_guest(frame: Frame, dialect: Dialect) -> Result<FromGuest, Fatal> {
    let Frame { message_type, id, body } = frame;
    if message_type == MessageType::CONTAINER_NOTIFICATION {
        return notification(&body).map(FromGuest::Notification);
    }
    let ours = dialect == Dialect::Coracle;
    match (message_type.kind(), message_type.category()) {
        (Kind::Response, Category::ComputeSystem) => {}
        (Kind::Response, Category::Coracle) if ours => {}
        _ => return Err(Fatal::UnknownMessage(message_type)),
    }
    Ok(FromGuest::Response { id, message_type, body })
}

fn notification(body: &[u8]) -> Result<Notification<ContainerNotification>, Fatal> {
    let notification: Notification<ContainerNotification> =
        Notification::decode(body).map_err(Fatal::Notification)?;
    let activity = &notification.activity_id;
    if !activity.0.is_empty() && !activity.is_guid() {
        let wrong = WireError::Shape(format!("activity {:?} is no GUID", activity.0));
        return Err(Fatal::Notification(wrong));
    }
    Ok(notification)
}

/// Reads the answer to a request. An answer that says the request failed is an answer.
///
/// # Errors
/// The bridge must end.
pub fn decode_response<R: Rpc>(body: &[u8]) -> Result<Response<R::Answer>, Fatal> {
    decode_answer(R::REQUEST, body)
}

/// Reads the answer to a request whose type is known only now.
///
/// # Errors
/// The bridge must end.
pub fn decode_answer<A: Body>(request: MessageType, body: &[u8]) -> Result<Response<A>, Fatal> {
    let response: Response<A> =
        Response::decode(body).map_err(|source| Fatal::Response { request, source })?;
    match &response.activity_id {
        Some(activity) if !activity.is_guid() => {
            Err(Fatal::Activity { request, activity: activity.0.clone() })
        }
        _ => Ok(response),
    }
}

/// A request a guest understood.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each variant is documented at its body")]
pub enum Call {
    Negotiate(Request<Negotiate>),
    Create(Request<ContainerConfig>),
    Start(Request<Start>),
    ShutdownGraceful(Request<ShutdownGraceful>),
    ShutdownForced(Request<ShutdownForced>),
    Execute(Request<Execution>),
    Wait(Request<WaitForProcess>),
    Signal(Request<SignalProcess>),
    Resize(Request<ResizeConsole>),
    Properties(Request<PropertiesQuery>),
    Modify(Request<Change>),
    DumpStacks(Request<DumpStacks>),
    DeleteContainerState(Request<DeleteContainerState>),
    Lifecycle(Request<LifecycleNotification>),
    ListState(Request<ListState>),
    AckExit(Request<AckExit>),
    AttachStdio(Request<AttachStdio>),
    Chunk(Request<Chunk>),
}

/// A process to start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Execution {
    /// What to start.
    pub parameters: ProcessParameters,
    /// The host's ports for its stdio.
    pub ports: VsockStdioRelay,
}

/// A change to a resource of the guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What to do.
    pub verb: Verb,
    /// To what.
    pub resource: Resource,
}

/// A request a guest does not serve.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The code to answer.
    pub result: Hresult,
    /// Why, in words.
    pub message: String,
    /// The request's activity, as far as it could be read.
    pub activity_id: ActivityId,
}

impl Refusal {
    /// The answer.
    pub fn to_response(&self) -> Response<Done> {
        Response::failed(&self.activity_id, self.result, self.message.clone())
    }
}

/// What a guest makes of a frame.
///
/// # Errors
/// The request is to be answered with a [`Refusal`].
pub fn to_guest(frame: &Frame, dialect: Dialect) -> Result<Call, Refusal> {
    let refuse =
        |(result, message)| Refusal { result, message, activity_id: activity(&frame.body) };
    if !is_served(frame.message_type, dialect) {
        let message = format!("{} is not supported here", frame.message_type);
        return Err(refuse((Hresult::NOT_IMPLEMENTED, message)));
    }
    decode_call(frame.message_type, &frame.body).map_err(refuse)
}

/// Before the negotiation nothing else is served, and after it no other negotiation.
fn is_served(message_type: MessageType, dialect: Dialect) -> bool {
    let negotiate = message_type == MessageType::NEGOTIATE_PROTOCOL;
    match (dialect, message_type.category()) {
        (Dialect::New, _) => negotiate,
        (Dialect::Plain | Dialect::Coracle, Category::ComputeSystem) => !negotiate,
        (Dialect::Coracle, Category::Coracle) => true,
        (Dialect::Plain, Category::Coracle) => false,
        (Dialect::Plain | Dialect::Coracle, Category::Unknown(_)) => false,
    }
}

/// The result and the words of a refusal.
type Reason = (Hresult, String);

fn decode_call(message_type: MessageType, body: &[u8]) -> Result<Call, Reason> {
    let tree = || Json::parse(body).map_err(bad_json);
    Ok(match message_type {
        MessageType::NEGOTIATE_PROTOCOL => Call::Negotiate(read(&tree()?)?.try_map(version)?),
        MessageType::CREATE => Call::Create(read(&tree()?)?.try_map(config)?),
        MessageType::START => Call::Start(read(&tree()?)?),
        MessageType::SHUTDOWN_GRACEFUL => Call::ShutdownGraceful(read(&tree()?)?),
        MessageType::SHUTDOWN_FORCED => Call::ShutdownForced(read(&tree()?)?),
        MessageType::EXECUTE_PROCESS => Call::Execute(read(&tree()?)?.try_map(execution)?),
        MessageType::WAIT_FOR_PROCESS => Call::Wait(read(&tree()?)?),
        MessageType::SIGNAL_PROCESS => Call::Signal(read(&tree()?)?),
        MessageType::RESIZE_CONSOLE => Call::Resize(read(&tree()?)?),
        MessageType::GET_PROPERTIES => Call::Properties(read(&tree()?)?.try_map(query)?),
        MessageType::MODIFY_SETTINGS => Call::Modify(read(&tree()?)?.try_map(change)?),
        // Stacks are asked for when something is wrong: any body will do.
        MessageType::DUMP_STACKS => {
            let request = tree().and_then(|tree| read(&tree));
            Call::DumpStacks(request.unwrap_or_default())
        }
        MessageType::DELETE_CONTAINER_STATE => Call::DeleteContainerState(read(&tree()?)?),
        MessageType::LIFECYCLE_NOTIFICATION => Call::Lifecycle(read(&tree()?)?),
        MessageType::LIST_STATE => Call::ListState(read(&tree()?)?),
        MessageType::ACK_EXIT => Call::AckExit(read(&tree()?)?),
        MessageType::ATTACH_STDIO => Call::AttachStdio(read(&tree()?)?),
        MessageType::CHUNK => Call::Chunk(read(&tree()?)?),
        unknown => {
            return Err((Hresult::NOT_IMPLEMENTED, format!("{unknown} is not supported")));
        }
    })
}

fn read<B: Body>(tree: &Json) -> Result<Request<B>, Reason> {
    Request::from_tree(tree).map_err(bad_json)
}

fn version(negotiate: Negotiate) -> Result<Negotiate, Reason> {
    if negotiate.accepts_our_version() {
        return Ok(negotiate);
    }
    let (least, most) = (negotiate.minimum_version, negotiate.maximum_version);
    let message = format!("version {PROTOCOL_VERSION} is not in the range {least} to {most}");
    Err((Hresult::UNSUPPORTED_PROTOCOL, message))
}

fn config(create: Create) -> Result<ContainerConfig, Reason> {
    let config = create.container_config.require("ContainerConfig").map_err(bad_json)?;
    if !config.schema_is_supported() {
        let version = config.schema_version.unwrap_or_default();
        let message = format!("schema version {}.{} is too old", version.major, version.minor);
        return Err((Hresult::INVALID_JSON, message));
    }
    Ok(config)
}

fn execution(execute: ExecuteProcess) -> Result<Execution, Reason> {
    let settings = execute.settings;
    let parameters = settings.process_parameters.require("ProcessParameters").map_err(bad_json)?;
    Ok(Execution { parameters, ports: settings.vsock_stdio_relay_settings.unwrap_or_default() })
}

fn query(properties: GetProperties) -> Result<PropertiesQuery, Reason> {
    Ok(properties.query.0.unwrap_or_default())
}

fn change(modify: Modify) -> Result<Change, Reason> {
    let missing = (Hresult::INVALID_JSON, "the field Request is missing".to_owned());
    let settings = modify.request.ok_or(missing)?;
    let understood =
        settings.resource().and_then(|resource| Ok(Change { verb: settings.verb()?, resource }));
    understood.map_err(|error| match &error {
        ResourceError::UnknownVerb(_) | ResourceError::UnknownType(_) => {
            (Hresult::FAIL, error.to_string())
        }
        ResourceError::Settings { source, .. } => {
            (Hresult::INVALID_JSON, format!("{error}: {source}"))
        }
    })
}

fn bad_json(error: impl std::error::Error) -> Reason {
    let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    (Hresult::INVALID_JSON, format!("{error}{cause}"))
}

/// The activity in a body that may be broken elsewhere.
fn activity(body: &[u8]) -> ActivityId {
    let tree = Json::parse(body).unwrap_or_default();
    match tree.get("ActivityId") {
        Some(Json::Text(text)) => ActivityId(text.clone()),
        _ => ActivityId::default(),
    }
}
