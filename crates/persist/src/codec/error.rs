//! What can be wrong with a document.

use super::Document;
use crate::foreign::Foreign;
use std::fmt;
use thiserror::Error;

/// A state that has no text.
#[derive(Debug, Error)]
#[error("{document} cannot be written as JSON")]
pub struct EncodeError {
    /// Which document.
    pub document: Document,
    /// Which value, and why not.
    pub source: serde_json::Error,
}

/// Why a file could not be read as a state.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Something happened to the file: what is in it is not what was written.
    #[error("{document} is damaged: {damage}")]
    Damaged {
        /// Which document.
        document: Document,
        /// What happened to it.
        damage: Damage,
    },
    /// The state ends and something follows. Go's reader does not look there.
    #[error("{document} ends after {end} bytes, but {} more follow", len - end)]
    Trailing {
        /// Which document.
        document: Document,
        /// Where the state ends.
        end: usize,
        /// Where the file ends.
        len: usize,
    },
    /// A value is not of its kind or not in its range.
    #[error("{document} has a wrong value at {path}")]
    Value {
        /// Which document.
        document: Document,
        /// Where, as in `Devices[1].Major`.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version wrote it, and some of what it says has other names here.
    #[error("{document} was written by {foreign}")]
    Foreign {
        /// Which document.
        document: Document,
        /// By whom.
        foreign: Foreign,
    },
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It has no bytes, or only spaces: it was made and never written, or its blocks never reached
    /// the disk.
    Empty,
    /// It ends in the middle.
    Truncated {
        /// How many bytes there are.
        len: usize,
    },
    /// Zeros where text should be: its size reached the disk and its content did not.
    Zeros {
        /// Where they begin.
        at: usize,
    },
    /// Bytes that are no text, or text that says only half a character.
    NoText {
        /// Where, as nearly as is known.
        at: usize,
    },
    /// Text that is not JSON.
    NoJson {
        /// Where it stops being.
        at: usize,
    },
    /// Lists in lists, deeper than any state.
    TooDeep {
        /// Where it becomes so.
        at: usize,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Empty => f.write_str("it is empty"),
            Damage::Truncated { len } => write!(f, "it breaks off after {len} bytes"),
            Damage::Zeros { at } => write!(f, "zeros instead of text from byte {at} on"),
            Damage::NoText { at } => write!(f, "no text at byte {at}"),
            Damage::NoJson { at } => write!(f, "no JSON from byte {at} on"),
            Damage::TooDeep { at } => write!(f, "nested too deeply at byte {at}"),
        }
    }
}
