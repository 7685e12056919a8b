//! JSON as the Go programs on the other end write and read it.
//!
//! GCS has no schema; it is whatever Go's `encoding/json` makes of hcsshim's structs. To be exact to
//! the byte, and to accept what they accept, this module has the four habits of that library:
//!
//! 1. *Reading* matches names without regard to case; the last of two equal names wins; unknown names
//!    are ignored; `null` and a missing name both mean the zero value; broken UTF-8 and half surrogate
//!    pairs become U+FFFD; a number with a fraction or an exponent is no integer ([`decode`]).
//! 2. *Omission*: a field with its zero value is left out of the object. Serialising a message does
//!    this everywhere, so that the structs in [`message`](crate::message) need no attributes.
//! 3. *Layout*: some fields are written all the same, and host and guest, two separate sets of Go
//!    structs, disagree on which and in what order. A [`Layout`] says so for each message, and side
//!    ([`Side`]).
//! 4. *Escaping*: `<`, `>`, `&`, U+2028 and U+2029 as `\u....`, and JSON inside a JSON string
//!    ([`JsonString`]) escaped twice.
//!
//! Between text and struct stands a small ordered tree, [`Json`]. It also carries the documents that
//! only pass through, such as an OCI specification.

mod build;
mod json;
mod layout;
mod read;
mod string;
mod write;

pub use json::Json;
pub use layout::{Field, Layout, Zero, always, maybe};
pub use string::{EmptyString, JsonString};

pub(crate) use layout::layout;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Which end writes: their structs order and omit fields differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// hcsshim's `internal/gcs`. Ends every body with a newline.
    Host,
    /// hcsshim's `internal/guest`.
    Guest,
}

/// A part of a message that knows its layout on either side.
pub trait Body: Serialize + DeserializeOwned {
    /// The fields in the order `side` writes them; empty when the struct's own order and "leave
    /// out what is zero" are all there is to say.
    fn layout(&self, _side: Side) -> Layout {
        &[]
    }
}

/// A document that passes through is written as it came.
impl Body for Json {}

/// Why a body could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The text is no JSON document, or nests deeper than 128 levels.
    #[error("the body is not a JSON document")]
    Syntax(#[source] serde_json::Error),
    /// It is JSON of another shape than the message needs.
    #[error("the body has another shape: {0}")]
    Shape(String),
}

impl serde::de::Error for WireError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Shape(message.to_string())
    }
}

impl serde::ser::Error for WireError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Shape(message.to_string())
    }
}

/// Reads one JSON document, by Go's rules; white space around it is ignored.
///
/// # Errors
/// When the text is not JSON, is followed by something, or does not have the shape of `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    Json::parse(body)?.decode()
}

/// The tree of a message part, as `side` lays it out.
///
/// # Errors
/// When a map in it has keys that are no text.
pub fn tree<B: Body>(part: &B, side: Side) -> Result<Json, WireError> {
    let mut tree = build::message(part)?;
    layout::apply(&mut tree, part.layout(side));
    Ok(tree)
}

#[cfg(test)]
mod tests;
