//! What a detached sandbox's command writes, kept in files so that it never waits for a reader.
//!
//! One JSON object a line, each with a piece of one stream as it came, where in the stream it begins,
//! and where both streams stand after it:
//!
//! ```json
//! {"time":"...","stream":"stdout","offset":0,"ends":[6,0],"text":"hello\n"}
//! {"time":"...","stream":"stdout","offset":6,"ends":[8,0],"base64":"//4="}
//! {"time":"...","stream":"stderr","offset":0,"ends":[8,70],"lost":70}
//! ```
//!
//! What is in the log is what the guest is told to forget, and nothing else: a monitor that takes over
//! reads the last whole line and goes on at its `ends`, so no byte is missed and none is written
//! twice. A line that was torn by the death of its writer is cut off. When a file has grown to its
//! limit it becomes `output.1.jsonl`, and so on; the oldest go.

mod read;
mod spill;
mod write;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use read::{Chunk, LogError, Reader};
pub(crate) use spill::Log;
use write::Writer;

/// The streams of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Its standard output, or its terminal.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Stream {
    /// Where its number is in a line's `ends`.
    fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LogLimits")]
pub struct Limits {
    /// The largest a file gets, in bytes.
    pub size: u64,
    /// How many files there are at the most.
    pub files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { size: 16 << 20, files: 3 }
    }
}

/// What becomes of output that cannot be kept, because the disk is full for example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// The command waits, as at a full pipe.
    #[default]
    Block,
    /// It is dropped, counted, and the gap is told in the log.
    Drop,
    /// It is kept in the run directory, which is memory of the host, until there is room; when that
    /// is full too, the command waits.
    Spill,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    time: String,
    stream: Stream,
    offset: u64,
    /// Where stdout and stderr stand after this line.
    ends: [u64; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Bytes that are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// So many bytes are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

/// The newest file of a folder is number 0.
fn file(folder: &Path, number: u32) -> PathBuf {
    match number {
        0 => folder.join("output.jsonl"),
        older => folder.join(format!("output.{older}.jsonl")),
    }
}
