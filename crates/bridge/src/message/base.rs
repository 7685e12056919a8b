//! What all messages have in common: ids, trace context, error records.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hresult::Hresult;
use crate::wire::{Body, Layout, Side, Zero, always, layout, maybe};

/// The null GUID: as a container id it means the VM itself.
const NULL: &str = "00000000-0000-0000-0000-000000000000";

/// The name of a container; the null GUID names the VM itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// The id of the VM itself.
    pub fn vm() -> Self {
        Self(NULL.to_owned())
    }

    /// True for the VM's own id.
    pub fn is_vm(&self) -> bool {
        self.0 == NULL
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ContainerId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl From<String> for ContainerId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the activity a message belongs to; a guest echoes whatever text it got.
///
/// hcsshim's host sends the null GUID and takes nothing but a GUID in lower-case hex with hyphens
/// back; hcsshim's guest takes any text. Empty is the zero value on both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActivityId(pub String);

impl ActivityId {
    /// Whether a host accepts it in an answer: absent, or a GUID without braces.
    pub fn is_guid(&self) -> bool {
        self.0.len() == NULL.len() && uuid::Uuid::try_parse(&self.0).is_ok()
    }
}

/// The tracing span a request belongs to, field `ocsc` (OpenCensus). Sent by hcsshim's host with every
/// request but the negotiation; carried, not judged: a guest takes any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TraceContext {
    /// 16 bytes in hex.
    #[serde(rename = "TraceID")]
    pub trace_id: String,
    /// 8 bytes in hex.
    #[serde(rename = "SpanID")]
    pub span_id: String,
    /// Bit 0: sampled.
    pub trace_options: u32,
    /// Base64 of a JSON list of key and value.
    pub tracestate: String,
}

/// Where and why a guest failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ErrorRecord {
    /// The error's code.
    pub result: Hresult,
    /// What happened.
    pub message: String,
    /// Begins with a newline when there is one.
    pub stack_trace: String,
    /// The failing program, `gcs`.
    pub module_name: String,
    /// Source file; empty when unknown.
    pub file_name: String,
    /// Line in it; [`UNKNOWN_LINE`](Self::UNKNOWN_LINE) when unknown.
    pub line: u32,
    /// Function in it.
    pub function_name: String,
}

impl ErrorRecord {
    /// The line number of an error without a known place: -1 as the guest writes it.
    pub const UNKNOWN_LINE: u32 = u32::MAX;

    /// The record a guest sends for an error without a known place.
    pub fn new(result: Hresult, message: impl Into<String>) -> Self {
        Self {
            result,
            message: message.into(),
            module_name: "gcs".to_owned(),
            line: Self::UNKNOWN_LINE,
            ..Self::default()
        }
    }
}

const TRACE: Layout =
    &[maybe("TraceID"), maybe("SpanID"), maybe("TraceOptions"), maybe("Tracestate")];

const ERROR_RECORD: Layout = &[
    always("Result", Zero::Number),
    always("Message", Zero::Text),
    maybe("StackTrace"),
    always("ModuleName", Zero::Text),
    always("FileName", Zero::Text),
    always("Line", Zero::Number),
    maybe("FunctionName"),
];

/// The part of a request (and of a notification) before its body.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RequestBase {
    pub container_id: ContainerId,
    pub activity_id: ActivityId,
    #[serde(rename = "ocsc")]
    pub trace: Option<TraceContext>,
}

impl Body for RequestBase {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![
                always("ContainerId", Zero::Text),
                always("ActivityId", Zero::Guid),
                maybe("ocsc").holding(TRACE),
            ],
            Side::Guest => layout![
                always("ContainerId", Zero::Text),
                always("ActivityId", Zero::Text),
                maybe("ocsc").holding(TRACE),
            ],
        }
    }
}

/// The part of a response before its body.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct ResponseBase {
    pub result: Hresult,
    pub error_message: String,
    pub activity_id: Option<ActivityId>,
    pub error_records: Vec<ErrorRecord>,
}

impl Body for ResponseBase {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![
                always("Result", Zero::Number),
                maybe("ErrorMessage"),
                always("ActivityId", Zero::Guid),
                maybe("ErrorRecords").holding(ERROR_RECORD),
            ],
            Side::Guest => layout![
                always("Result", Zero::Number),
                maybe("ActivityId"),
                maybe("ErrorMessage"),
                maybe("ErrorRecords").holding(ERROR_RECORD),
            ],
        }
    }
}
