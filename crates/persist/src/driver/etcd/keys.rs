//! Names of keys.

use crate::id::SandboxId;
use crate::store::{FILE, Generation, OWN_FILE};
use serde::{Deserialize, Serialize};

/// The key that every save changes.
pub(super) const META: &str = "meta";

#[derive(Serialize, Deserialize)]
struct Meta {
    generation: u64,
}

/// What the meta key says.
pub(super) fn meta(generation: Generation) -> Vec<u8> {
    format!("{{\"generation\":{generation}}}").into_bytes()
}

/// The generation that a meta key tells of; 0 if it tells of none.
pub(super) fn generation(meta: &[u8]) -> Generation {
    Generation(serde_json::from_slice::<Meta>(meta).map_or(0, |meta| meta.generation))
}

/// Keys with a prefix of their own.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// What the keys of all sandboxes begin with.
    pub(super) fn sandboxes(&self) -> String {
        format!("{}/sbs/", self.prefix)
    }

    /// What all keys of a sandbox begin with.
    pub(super) fn sandbox(&self, id: &SandboxId) -> String {
        format!("{}/sbs/{id}/", self.prefix)
    }

    /// What the keys of a sandbox's locks begin with.
    pub(super) fn locks(&self, id: &SandboxId) -> String {
        format!("{}/locks/{id}/", self.prefix)
    }

    /// What the keys of data that belongs to no sandbox begin with.
    pub(super) fn globals(&self) -> String {
        format!("{}/global/", self.prefix)
    }

    /// The end of the key of a document.
    pub(super) fn of_document(name: &str) -> String {
        match name.split_once('/') {
            Some((container, _)) => format!("c/{container}"),
            None if name == OWN_FILE => "record".to_owned(),
            None => "sandbox".to_owned(),
        }
    }

    /// The document whose key ends so.
    pub(super) fn document(end: &str) -> Option<String> {
        match end.split_once('/') {
            Some(("c", container)) => Some(format!("{container}/{FILE}")),
            None if end == "record" => Some(OWN_FILE.to_owned()),
            None if end == "sandbox" => Some(FILE.to_owned()),
            Some(_) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_has_a_key_that_is_known_again() {
        for name in [FILE, OWN_FILE, "c1/persist.json", "meta/persist.json"] {
            assert_eq!(Keys::document(&Keys::of_document(name)).as_deref(), Some(name));
        }
        assert_eq!(Keys::document(META), None);
        assert_eq!(generation(&meta(Generation(7))), Generation(7));
        assert_eq!(generation(b"nonsense"), Generation(0));
    }
}
