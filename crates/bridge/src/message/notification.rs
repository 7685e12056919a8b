//! A container has ended.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::hresult::Hresult;
use crate::wire::{Body, Json, JsonString, Layout, Side, Zero, always, layout, maybe};

/// The body of a container notification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerNotification {
    /// What happened.
    #[serde(rename = "Type")]
    pub kind: NotificationType,
    /// The operation it belongs to; `None` (the word) for an exit.
    pub operation: String,
    /// Whether it worked.
    pub result: Hresult,
    /// More about it; Linux guests leave it out.
    pub result_info: JsonString<Json>,
}

impl ContainerNotification {
    /// A container has ended, in this way.
    pub fn exit(kind: NotificationType) -> Self {
        Self { kind, operation: "None".to_owned(), ..Self::default() }
    }
}

/// What a notification is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NotificationType(pub Cow<'static, str>);

impl NotificationType {
    /// The container ended after a SIGTERM of ours.
    pub const GRACEFUL_EXIT: Self = Self(Cow::Borrowed("GracefulExit"));
    /// The container ended after a SIGKILL of ours.
    pub const FORCED_EXIT: Self = Self(Cow::Borrowed("ForcedExit"));
    /// The container ended by itself.
    pub const UNEXPECTED_EXIT: Self = Self(Cow::Borrowed("UnexpectedExit"));
}

impl Body for ContainerNotification {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![
                always("Type", Zero::Text),
                always("Operation", Zero::Text),
                always("Result", Zero::Number),
                always("ResultInfo", Zero::QuotedNull),
            ],
            Side::Guest => layout![
                always("Type", Zero::Text),
                always("Operation", Zero::Text),
                always("Result", Zero::Number),
                maybe("ResultInfo"),
            ],
        }
    }
}
