//! A tree read as Go reads: keys in any case, unknown ones passed over, null for zero.
//!
//! This is a serde deserializer, and every struct tells a deserializer the names of its fields; so
//! the rule is here once and the model knows nothing of it. A key belongs to the field of exactly its
//! name, else to the first whose name is the same but for case.

use super::tree::Node;
use serde::de::{self, DeserializeSeed, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::Error;
use std::borrow::Cow;

impl<'de> Node<'de> {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Node::Null => Unexpected::Unit,
            Node::Bool(value) => Unexpected::Bool(*value),
            Node::Unsigned(value) => Unexpected::Unsigned(*value),
            Node::Negative(value) => Unexpected::Signed(*value),
            Node::Float(value) => Unexpected::Float(*value),
            Node::Text(text) => Unexpected::Str(text),
            Node::List(_) => Unexpected::Seq,
            Node::Object(_) => Unexpected::Map,
        }
    }

    fn wrong(&self, visitor: &dyn de::Expected) -> Error {
        Error::invalid_type(self.unexpected(), visitor)
    }
}

/// Whether Go takes two names for the same: alike but for the case of ASCII letters, and with the
/// two characters of Unicode whose simple folding is an ASCII letter.
pub(crate) fn same_name(key: &str, field: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(field.chars().map(fold))
}

fn field_of(key: &str, fields: &'static [&'static str]) -> Option<&'static str> {
    let exact = fields.iter().find(|field| **field == key);
    exact.or_else(|| fields.iter().find(|field| same_name(key, field))).copied()
}

/// The entries of a struct, each field once.
fn folded<'de>(
    entries: Vec<(Cow<'de, str>, Node<'de>)>,
    fields: &'static [&'static str],
) -> Vec<(Cow<'de, str>, Node<'de>)> {
    let mut known: Vec<(Cow<'de, str>, Node<'de>)> = Vec::with_capacity(entries.len());
    for (key, node) in entries {
        let Some(field) = field_of(&key, fields) else { continue };
        match known.iter_mut().find(|(name, _)| name == field) {
            Some((_, first)) => first.merge(node),
            None => known.push((Cow::Borrowed(field), node)),
        }
    }
    known
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Node::Null => visitor.visit_u64(0),
                Node::Unsigned(value) => visitor.visit_u64(value),
                Node::Negative(value) => visitor.visit_i64(value),
                // The one way to write zero that is not an unsigned number.
                Node::Float(value) if value == 0.0 && value.is_sign_negative() => {
                    visitor.visit_u64(0)
                }
                other => Err(other.wrong(&visitor)),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Node<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(value),
            Node::Unsigned(value) => visitor.visit_u64(value),
            Node::Negative(value) => visitor.visit_i64(value),
            Node::Float(value) => visitor.visit_f64(value),
            Node::Text(Cow::Borrowed(text)) => visitor.visit_borrowed_str(text),
            Node::Text(Cow::Owned(text)) => visitor.visit_string(text),
            Node::List(nodes) => visitor.visit_seq(Elements(nodes.into_iter())),
            Node::Object(entries) => {
                visitor.visit_map(Entries { entries: entries.into_iter(), value: None })
            }
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_bool(false),
            Node::Bool(value) => visitor.visit_bool(value),
            other => Err(other.wrong(&visitor)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_borrowed_str(""),
            Node::Text(_) => self.deserialize_any(visitor),
            other => Err(other.wrong(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_none(),
            other => visitor.visit_some(other),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_seq(Elements(Vec::new().into_iter())),
            Node::List(_) => self.deserialize_any(visitor),
            other => Err(other.wrong(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => Node::Object(Vec::new()).deserialize_any(visitor),
            Node::Object(_) => self.deserialize_any(visitor),
            other => Err(other.wrong(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Node::Null => Node::Object(Vec::new()).deserialize_any(visitor),
            Node::Object(entries) => Node::Object(folded(entries, fields)).deserialize_any(visitor),
            other => Err(other.wrong(&visitor)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

struct Elements<'de>(std::vec::IntoIter<Node<'de>>);

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

struct Entries<'de> {
    entries: std::vec::IntoIter<(Cow<'de, str>, Node<'de>)>,
    value: Option<Node<'de>>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(Node::Text(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        // A value without its key would be serde's own mistake.
        seed.deserialize(self.value.take().unwrap_or(Node::Null))
    }
}
