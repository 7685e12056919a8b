//! JSON inside a JSON string.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decode;

/// The mark by which a serialiser of this module knows a document that goes into a string.
pub(super) const QUOTED: &str = "$coracle_bridge::Quoted";

/// A field whose text holds a JSON document (`ContainerConfig`, `ProcessParameters`, `Query`,
/// `Properties`, `ResultInfo`).
///
/// A missing field, `null`, the empty string and the text `null` all mean "nothing"; hcsshim's host
/// ends its bridge on an empty string, we do not. Where nothing may not be, use
/// [`require`](Self::require). Only the serialiser of [`wire`](super) writes it as a string.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonString<T>(pub Option<T>);

/// A field that must hold a document holds none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the field {0} holds no JSON document")]
pub struct EmptyString(pub &'static str);

impl<T> JsonString<T> {
    /// The document in the field called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn require(self, name: &'static str) -> Result<T, EmptyString> {
        self.0.ok_or(EmptyString(name))
    }
}

impl<T> Default for JsonString<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<T> for JsonString<T> {
    fn from(document: T) -> Self {
        Self(Some(document))
    }
}

impl<T: Serialize> Serialize for JsonString<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            None => serializer.serialize_unit(),
            Some(document) => serializer.serialize_newtype_struct(QUOTED, document),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for JsonString<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            None => Ok(Self(None)),
            Some(text) if text.is_empty() => Ok(Self(None)),
            Some(text) => {
                let document: Option<T> = decode(text.as_bytes()).map_err(|error| {
                    D::Error::custom(format_args!("the JSON inside a string: {error}"))
                })?;
                Ok(Self(document))
            }
        }
    }
}
