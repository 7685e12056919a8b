//! The envelopes: what surrounds a body on its way.

use super::base::{RequestBase, ResponseBase};
use super::{ActivityId, ContainerId, ErrorRecord, TraceContext};
use crate::frame::{Frame, MessageType};
use crate::hresult::Hresult;
use crate::wire::{Body, Json, Side, WireError, tree};

/// The body of a request, with what it asks for.
pub trait Rpc: Body {
    /// The request's type.
    const REQUEST: MessageType;
    /// The body of its answer.
    type Answer: Body + Default;
}

/// A request; host to guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request<B> {
    /// The container it is about.
    pub container_id: ContainerId,
    /// Empty means the null GUID.
    pub activity_id: ActivityId,
    /// The tracing span of the caller.
    pub trace: Option<TraceContext>,
    /// What is asked.
    pub body: B,
}

impl<B> Request<B> {
    /// A request about `container_id`, without activity and trace.
    pub fn new(container_id: ContainerId, body: B) -> Self {
        Self { container_id, activity_id: ActivityId::default(), trace: None, body }
    }

    /// The same request with another body, made from this one.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn try_map<C, E>(self, make: impl FnOnce(B) -> Result<C, E>) -> Result<Request<C>, E> {
        let Self { container_id, activity_id, trace, body } = self;
        Ok(Request { container_id, activity_id, trace, body: make(body)? })
    }
}

impl<B: Body> Request<B> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// When it is not JSON, or not of this shape.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        Self::from_tree(&Json::parse(body)?)
    }

    pub(super) fn from_tree(tree: &Json) -> Result<Self, WireError> {
        let RequestBase { container_id, activity_id, trace } = tree.decode()?;
        Ok(Self { container_id, activity_id, trace, body: tree.decode()? })
    }

    /// Writes the body of a frame as `side` does.
    ///
    /// # Errors
    /// When a map in it has keys that are no text.
    pub fn encode(&self, side: Side) -> Result<Vec<u8>, WireError> {
        let base = RequestBase {
            container_id: self.container_id.clone(),
            activity_id: self.activity_id.clone(),
            trace: self.trace.clone(),
        };
        write(&base, &self.body, side)
    }

    /// The frame a host sends.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn to_frame(&self, id: u64) -> Result<Frame, WireError>
    where
        B: Rpc,
    {
        Ok(Frame { message_type: B::REQUEST, id, body: self.encode(Side::Host)? })
    }
}

/// The answer to a request; guest to host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response<B> {
    /// Success or why not.
    pub result: Hresult,
    /// The error in words; empty on success.
    pub error_message: String,
    /// The request's, echoed; absent in answers to requests without one.
    pub activity_id: Option<ActivityId>,
    /// The error in detail.
    pub error_records: Vec<ErrorRecord>,
    /// What was asked for; its zero value when the request failed.
    pub body: B,
}

impl<B: Default> Response<B> {
    /// A good answer.
    pub fn ok(activity_id: &ActivityId, body: B) -> Self {
        Self { activity_id: echo(activity_id), body, ..Self::default() }
    }

    /// The answer to a request that failed. hcsshim's guest leaves the body out whatever was asked
    /// for: `B` is [`Done`](super::Done) then.
    pub fn failed(activity_id: &ActivityId, result: Hresult, message: impl Into<String>) -> Self {
        let error_message = message.into();
        let error_records = vec![ErrorRecord::new(result, error_message.clone())];
        let activity_id = echo(activity_id);
        Self { result, error_message, activity_id, error_records, body: B::default() }
    }
}

fn echo(activity_id: &ActivityId) -> Option<ActivityId> {
    (!activity_id.0.is_empty()).then(|| activity_id.clone())
}

impl<B: Body> Response<B> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// When it is not JSON, or not of this shape.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let tree = Json::parse(body)?;
        let ResponseBase { result, error_message, activity_id, error_records } = tree.decode()?;
        Ok(Self { result, error_message, activity_id, error_records, body: tree.decode()? })
    }

    /// Writes the body of a frame as `side` does.
    ///
    /// # Errors
    /// When a map in it has keys that are no text.
    pub fn encode(&self, side: Side) -> Result<Vec<u8>, WireError> {
        let base = ResponseBase {
            result: self.result,
            error_message: self.error_message.clone(),
            activity_id: self.activity_id.clone(),
            error_records: self.error_records.clone(),
        };
        write(&base, &self.body, side)
    }

    /// The frame a guest sends as the answer to `request`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn to_frame(&self, request: MessageType, id: u64) -> Result<Frame, WireError> {
        Ok(Frame { message_type: request.response(), id, body: self.encode(Side::Guest)? })
    }
}

/// A message nobody answers; guest to host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notification<B> {
    /// The container it is about.
    pub container_id: ContainerId,
    /// The activity that caused it.
    pub activity_id: ActivityId,
    /// The tracing span that caused it.
    pub trace: Option<TraceContext>,
    /// What happened.
    pub body: B,
}

impl<B: Body> Notification<B> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// When it is not JSON, or not of this shape.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let Request { container_id, activity_id, trace, body } = Request::decode(body)?;
        Ok(Self { container_id, activity_id, trace, body })
    }

    /// Writes the body of a frame as `side` does.
    ///
    /// # Errors
    /// When a map in it has keys that are no text.
    pub fn encode(&self, side: Side) -> Result<Vec<u8>, WireError> {
        let base = RequestBase {
            container_id: self.container_id.clone(),
            activity_id: self.activity_id.clone(),
            trace: self.trace.clone(),
        };
        write(&base, &self.body, side)
    }
}

fn write<A: Body, B: Body>(base: &A, body: &B, side: Side) -> Result<Vec<u8>, WireError> {
    let mut whole = tree(base, side)?;
    if let (Json::Object(fields), Json::Object(more)) = (&mut whole, tree(body, side)?) {
        fields.extend(more);
    }
    let mut text = whole.to_text();
    if side == Side::Host {
        text.push('\n');
    }
    Ok(text.into_bytes())
}

/// A body without fields.
macro_rules! empty_bodies {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $name {}

        impl crate::wire::Body for $name {}
    )*};
}
pub(super) use empty_bodies;

/// Ties bodies to their message types and answers.
macro_rules! rpcs {
    ($($body:ty = $request:ident -> $answer:ty;)*) => {$(
        impl crate::message::Rpc for $body {
            const REQUEST: crate::frame::MessageType = crate::frame::MessageType::$request;
            type Answer = $answer;
        }
    )*};
}
pub(super) use rpcs;
