//! Which fields are written, in what order, by which side.
//!
//! A message is first turned into a tree in the order of its struct with every zero field left out.
//! A layout then rearranges that tree: fields move into the listed order and take the listed
//! spelling, and those marked [`always`] come back with their zero value. Fields it does not list
//! follow behind, so a layout names either all fields of an object or none.

use serde_json::Number;

use super::Json;

/// The fields of one object in the order they are written.
pub type Layout = &'static [Field];

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    name: &'static str,
    absent: Option<Zero>,
    inside: Layout,
}

/// What an [`always`] field holds when it has its zero value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// `false`
    False,
    /// `0`
    Number,
    /// `""`
    Text,
    /// `null`
    Null,
    /// `{}`
    Object,
    /// `"null"`: a document in a string that is not there
    QuotedNull,
    /// `"00000000-0000-0000-0000-000000000000"`
    Guid,
}

/// A field that is left out while it is zero.
pub const fn maybe(name: &'static str) -> Field {
    Field { name, absent: None, inside: &[] }
}

/// A field that is written also when it is zero.
pub const fn always(name: &'static str, zero: Zero) -> Field {
    Field { name, absent: Some(zero), inside: &[] }
}

/// A [`Layout`] that lives as long as the program.
macro_rules! layout {
    ($($field:expr),* $(,)?) => {
        const { &[$($field),*] as crate::wire::Layout }
    };
}
pub(crate) use layout;

impl Field {
    /// The same field, whose value (object, each object of a list, or document in a string) has a
    /// layout itself.
    pub const fn holding(self, inside: Layout) -> Self {
        Self { inside, ..self }
    }
}

impl Zero {
    fn tree(self) -> Json {
        match self {
            Self::False => Json::Bool(false),
            Self::Number => Json::Number(Number::from(0)),
            Self::Text => Json::Text(String::new()),
            Self::Null => Json::Null,
            Self::Object => Json::EMPTY,
            Self::QuotedNull => Json::Quoted(Box::new(Json::Null)),
            Self::Guid => Json::Text(uuid::Uuid::nil().to_string()),
        }
    }
}

/// Rearranges `tree` by `layout`.
pub(super) fn apply(tree: &mut Json, layout: Layout) {
    if layout.is_empty() {
        return;
    }
    match tree {
        Json::Object(fields) => {
            let mut rest = std::mem::take(fields);
            for field in layout {
                let found = rest.iter().position(|(name, _)| name.eq_ignore_ascii_case(field.name));
                let value = match (found, field.absent) {
                    (Some(place), _) => Some(rest.remove(place).1),
                    (None, Some(zero)) => Some(zero.tree()),
                    (None, None) => None,
                };
                let Some(mut value) = value else { continue };
                apply(&mut value, field.inside);
                fields.push((field.name.to_owned(), value));
            }
            fields.append(&mut rest);
        }
        Json::Array(items) => items.iter_mut().for_each(|item| apply(item, layout)),
        Json::Quoted(inner) => apply(inner, layout),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => {}
    }
}
