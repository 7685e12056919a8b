//! Reading by Go's rules: text to tree, tree to struct.

use std::borrow::Cow;

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::{Json, WireError};

/// Text to tree.
pub(super) fn parse(text: &[u8]) -> Result<Json, WireError> {
    serde_json::from_str(&mend(text)).map_err(WireError::Syntax)
}

/// What Go reads as U+FFFD becomes U+FFFD: each byte that is not UTF-8, and each escaped half of a
/// surrogate pair. (Outside strings either is a syntax error before and after.)
fn mend(text: &[u8]) -> Cow<'_, str> {
    let mut utf8 = Cow::Borrowed("");
    for chunk in text.utf8_chunks() {
        if chunk.valid().len() == text.len() {
            utf8 = Cow::Borrowed(chunk.valid());
        } else {
            let whole = utf8.to_mut();
            whole.push_str(chunk.valid());
            whole.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
        }
    }
    match mend_surrogates(&utf8) {
        Some(mended) => Cow::Owned(mended),
        None => utf8,
    }
}

fn mend_surrogates(text: &str) -> Option<String> {
    let mut mended: Option<String> = None;
    let (mut done, mut at) = (0, 0);
    while let Some(escape) = text[at..].find('\\').map(|place| at + place) {
        let Some(unit) = escaped_unit(text, escape) else {
            // Any other escape: skip the backslash and the ASCII character it escapes.
            at =
                escape + 1 + usize::from(text.as_bytes().get(escape + 1).is_some_and(u8::is_ascii));
            continue;
        };
        at = escape + 6;
        match unit {
            0xD800..=0xDBFF if matches!(escaped_unit(text, at), Some(0xDC00..=0xDFFF)) => at += 6,
            0xD800..=0xDFFF => {
                let mended = mended.get_or_insert_default();
                mended.push_str(&text[done..escape]);
                mended.push(char::REPLACEMENT_CHARACTER);
                done = at;
            }
            _ => {}
        }
    }
    mended.map(|mut mended| {
        mended.push_str(&text[done..]);
        mended
    })
}

/// The number of a `\uXXXX` escape that begins at byte `at`.
fn escaped_unit(text: &str, at: usize) -> Option<u16> {
    let escape = text.as_bytes().get(at..at + 6)?;
    let digits = escape.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0_u16, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// `null` is the zero value of whatever is asked for.
macro_rules! zero_for_null {
    ($($method:ident => $visit:ident($zero:expr))*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
            match self {
                Json::Null => visitor.$visit($zero),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Json {
    type Error = WireError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, Some(value)) => visitor.visit_f64(value),
                (None, None, None) => Err(WireError::custom("a number that is none")),
            },
            Json::Text(text) => visitor.visit_borrowed_str(text),
            Json::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter());
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.as_str(), value));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            Json::Quoted(inner) => visitor.visit_string(inner.to_text()),
        }
    }

    zero_for_null! {
        deserialize_bool => visit_bool(false)
        deserialize_i8 => visit_u8(0)
        deserialize_i16 => visit_u8(0)
        deserialize_i32 => visit_u8(0)
        deserialize_i64 => visit_u8(0)
        deserialize_u8 => visit_u8(0)
        deserialize_u16 => visit_u8(0)
        deserialize_u32 => visit_u8(0)
        deserialize_u64 => visit_u8(0)
        deserialize_f32 => visit_u8(0)
        deserialize_f64 => visit_u8(0)
        deserialize_str => visit_borrowed_str("")
        deserialize_string => visit_borrowed_str("")
        deserialize_seq => visit_seq(SeqDeserializer::<_, WireError>::new(std::iter::empty::<()>()))
        deserialize_map => visit_map(no_fields())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WireError> {
        match self {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, WireError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        match self {
            Json::Null => visitor.visit_map(no_fields()),
            Json::Object(fields) => {
                visitor.visit_map(MapDeserializer::new(known_fields(fields, names).into_iter()))
            }
            _ => Err(WireError::invalid_type(self.unexpected(), &name)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WireError> {
        match self {
            Json::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.as_str(), value));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(fields)))
            }
            _ => Err(WireError::invalid_type(self.unexpected(), &visitor)),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, WireError> for &'de Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Json {
    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Number(_) => Unexpected::Other("number"),
            Self::Text(text) => Unexpected::Str(text),
            Self::Array(_) => Unexpected::Seq,
            Self::Object(_) => Unexpected::Map,
            Self::Quoted(_) => Unexpected::Other("quoted document"),
        }
    }
}

/// The fields of `object` that a struct with fields `names` has, each once: an exact name goes before
/// one that differs in case, the last of the same field wins, and `null` says nothing.
fn known_fields<'de>(
    object: &'de [(String, Json)],
    names: &'static [&'static str],
) -> Vec<(&'static str, &'de Json)> {
    let mut known: Vec<(&'static str, &'de Json)> = Vec::with_capacity(names.len());
    for (key, value) in object.iter().filter(|(_, value)| *value != Json::Null) {
        let exact = names.iter().find(|name| *name == key);
        let folded = || names.iter().find(|name| name.eq_ignore_ascii_case(key));
        let Some(name) = exact.or_else(folded) else { continue };
        match known.iter_mut().find(|(seen, _)| seen == name) {
            Some(field) => field.1 = value,
            None => known.push((name, value)),
        }
    }
    known
}

fn no_fields<'de>() -> MapDeserializer<'de, std::iter::Empty<(&'static str, &'de Json)>, WireError>
{
    MapDeserializer::new(std::iter::empty())
}
