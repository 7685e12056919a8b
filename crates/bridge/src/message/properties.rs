//! GetProperties: a container's processes and counters.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::CgroupMetrics;
use super::envelope::rpcs;
use crate::wire::{Body, JsonString, Layout, Side, Zero, always, layout};

/// GetProperties.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GetProperties {
    /// What is asked for; nothing at all is allowed.
    pub query: JsonString<PropertiesQuery>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PropertiesQuery {
    /// One entry for each property.
    pub property_types: Vec<PropertyType>,
}

/// The name of a property. Guests pass over names they do not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PropertyType(pub Cow<'static, str>);

impl PropertyType {
    /// The processes of the container.
    pub const PROCESS_LIST: Self = Self(Cow::Borrowed("ProcessList"));
    /// Its counters.
    pub const STATISTICS: Self = Self(Cow::Borrowed("Statistics"));
}

/// The answer to [`GetProperties`]. `P` is the document in it; Windows guests have others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", bound(deserialize = "P: serde::de::DeserializeOwned"))]
pub struct PropertiesAnswer<P = Properties> {
    /// What was asked for.
    pub properties: JsonString<P>,
}

impl<P> Default for PropertiesAnswer<P> {
    fn default() -> Self {
        Self { properties: JsonString(None) }
    }
}

/// What a Linux guest tells of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Properties {
    /// Its processes, by their ids in the guest.
    pub process_list: Vec<ProcessEntry>,
    /// Its counters.
    #[serde(rename = "LCOWMetrics")]
    pub metrics: Option<CgroupMetrics>,
}

/// A process of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ProcessEntry {
    /// Its id in the guest.
    pub process_id: u32,
}

rpcs! {
    GetProperties = GET_PROPERTIES -> PropertiesAnswer;
}

impl Body for GetProperties {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![always("Query", Zero::QuotedNull)],
            Side::Guest => layout![always("Query", Zero::Text)],
        }
    }
}

impl<P: Serialize + serde::de::DeserializeOwned> Body for PropertiesAnswer<P> {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![always("Properties", Zero::QuotedNull)],
            Side::Guest => layout![always("Properties", Zero::Text)],
        }
    }
}
