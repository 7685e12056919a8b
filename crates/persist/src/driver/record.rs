//! What Kata's schema has no place for: `coracle.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// The schema of the records that are written.
pub const RECORD_SCHEMA: u32 = 1;

/// A record of ours beside Kata's states: ledger, slots, process identities, offsets of streams.
/// What is in it is its user's affair; its schema number tells who can read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnRecord {
    /// The schema of the members.
    pub schema: u32,
    /// The members, by name.
    #[serde(flatten)]
    pub members: Map<String, Value>,
}

impl Default for OwnRecord {
    fn default() -> Self {
        Self { schema: RECORD_SCHEMA, members: Map::new() }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Error)]
pub enum RecordError {
    /// A later coracle wrote it. It is left as it is.
    #[error("it has schema {found}; this coracle knows up to {RECORD_SCHEMA}")]
    Newer {
        /// Its schema.
        found: u32,
    },
    /// It is no record.
    #[error("it is no record")]
    Damaged(#[source] serde_json::Error),
}

impl RecordError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            RecordError::Newer { .. } => "E-STATE-NEWER",
            RecordError::Damaged(_) => "E-STATE-DAMAGED",
        }
    }
}

impl OwnRecord {
    /// Reads a record of this schema.
    ///
    /// # Errors
    /// When it is no record, or of a later schema.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(bytes).map_err(RecordError::Damaged)?;
        if record.schema > RECORD_SCHEMA {
            return Err(RecordError::Newer { found: record.schema });
        }
        Ok(record)
    }

    /// The record as a line of JSON.
    ///
    /// # Errors
    /// Never for records made of JSON values; the type is that of its library.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut bytes = serde_json::to_vec(self).map_err(RecordError::Damaged)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
