//! The ordered tree between JSON text and structs.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Number;

use super::string::QUOTED;
use super::{WireError, build, read, write};

/// A JSON document whose objects keep the order of their fields.
///
/// It holds what only passes through (OCI specifications, resource settings, network endpoints), and
/// is read and written by the rules of the [module](super).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Json {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// A list.
    Array(Vec<Json>),
    /// An object, its fields in the order they came; names may repeat, and the last one counts.
    Object(Vec<(String, Json)>),
    /// A document to be written as a string that holds it. Reading never makes one.
    Quoted(Box<Json>),
}

impl Json {
    /// An object without fields.
    pub const EMPTY: Self = Self::Object(Vec::new());

    /// Reads one document.
    ///
    /// # Errors
    /// When the text is not JSON or something follows the document.
    pub fn parse(text: &[u8]) -> Result<Self, WireError> {
        read::parse(text)
    }

    /// The tree of any serialisable value. Nothing is left out that the type itself would not leave
    /// out: this is for documents with a schema of their own, such as an OCI specification.
    ///
    /// # Errors
    /// When a map in it has keys that are no text.
    pub fn of<T: Serialize>(value: &T) -> Result<Self, WireError> {
        build::plain(value)
    }

    /// The tree of a part of a message: fields with their zero value are left out.
    ///
    /// # Errors
    /// When a map in it has keys that are no text.
    pub fn of_message<T: Serialize>(part: &T) -> Result<Self, WireError> {
        build::message(part)
    }

    /// The value this tree stands for, by Go's rules (names without regard to case, and so on).
    ///
    /// # Errors
    /// When it has another shape than `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        T::deserialize(self)
    }

    /// The field `name` of an object, compared without regard to case; the last one of that name.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Object(fields) = self else { return None };
        fields.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The text, without a newline, escaped as Go does.
    pub fn to_text(&self) -> String {
        write::text(self)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Array(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
            Self::Quoted(inner) => serializer.serialize_newtype_struct(QUOTED, inner.as_ref()),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON document")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Json::Object(object))
    }
}
