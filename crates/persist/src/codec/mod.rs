//! Go's JSON to the byte, and a reader that forgives what is harmless.
//!
//! Writing is serde_json with a formatter of our own, since Go escapes more than
//! others do. Reading has two ways. Nearly every file was written by this code or by Go's, and such a
//! file is read at once, with no key unknown, none twice and none missing its value. If that fails,
//! the slow way finds out why:
//!
//! ```text
//!   bytes ──► at once ──ok──────────────────────────────► state
//!               └─ no ──► tree ──► foreign? ──yes──────► refused by name
//!                          │          └─ no ──► folded ─► state, as Go would have read it
//!                          └─ no JSON ──────────────────► damaged, and how
//! ```
//!
//! Go's reader also takes what hides a loss: bytes behind the value, text that is no text. There ours
//! is strict; `docs/persist-reader.md` lists the differences.

mod error;
mod fold;
mod format;
mod lists;
mod read;
mod tree;

pub use error::{Damage, DecodeError, EncodeError};
pub(crate) use fold::same_name;
pub use read::{Tolerance, decode_container, decode_sandbox};
pub(crate) use read::{decode_saved, fold, tree};
pub(crate) use tree::Node;

use crate::model::{ContainerState, SandboxState};
use serde::Serialize;
use std::collections::BTreeMap;

/// Which of the two documents something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// A [`SandboxState`].
    Sandbox,
    /// A [`ContainerState`].
    Container,
}

impl std::fmt::Display for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Document::Sandbox => "the state of a sandbox",
            Document::Container => "the state of a container",
        })
    }
}

/// The content of a sandbox's `persist.json`.
///
/// # Errors
/// When a member has no text: a year beyond 9999, an IP address of odd length.
pub fn encode_sandbox(state: &SandboxState) -> Result<Vec<u8>, EncodeError> {
    format::line(state).map_err(|source| EncodeError { document: Document::Sandbox, source })
}

/// The content of a container's `persist.json`.
///
/// # Errors
/// As [`encode_sandbox`].
pub fn encode_container(state: &ContainerState) -> Result<Vec<u8>, EncodeError> {
    format::line(state).map_err(|source| EncodeError { document: Document::Container, source })
}

/// Which of the two documents a file is, by the keys that only one of them has. What has none of
/// them may be either.
///
/// # Errors
/// When the file is damaged.
pub fn recognise(bytes: &[u8]) -> Result<Option<Document>, DecodeError> {
    const SANDBOX: [&str; 6] = [
        "PersistVersion",
        "SandboxContainer",
        "HypervisorState",
        "AgentState",
        "Network",
        "Config",
    ];
    const CONTAINER: [&str; 5] = ["Rootfs", "DeviceMaps", "Mounts", "Process", "BundlePath"];
    let (file, _) = tree(bytes, Document::Sandbox)?;
    let has = |keys: &[&str]| keys.iter().any(|key| file.get(key).is_some());
    Ok(match (has(&SANDBOX), has(&CONTAINER)) {
        (true, false) => Some(Document::Sandbox),
        (false, true) => Some(Document::Container),
        (true, true) | (false, false) => None,
    })
}

/// A whole sandbox on one line: `{"Sandbox":…,"Containers":{…}}`.
///
/// # Errors
/// As [`encode_sandbox`].
pub fn canonical(
    sandbox: &SandboxState,
    containers: &BTreeMap<String, ContainerState>,
) -> Result<Vec<u8>, EncodeError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Whole<'a> {
        sandbox: &'a SandboxState,
        containers: &'a BTreeMap<String, ContainerState>,
    }
    format::line(&Whole { sandbox, containers })
        .map_err(|source| EncodeError { document: Document::Sandbox, source })
}
