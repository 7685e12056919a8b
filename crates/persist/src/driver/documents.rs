//! A sandbox as documents, and documents as a sandbox.

use super::error::DriverError;
use super::record::OwnRecord;
use super::{Save, Whole};
use crate::codec::{Tolerance, decode_container, decode_sandbox, encode_container, encode_sandbox};
use crate::id::SandboxId;
use crate::model::SandboxState;
use crate::store::{FILE, OWN_FILE, Replay};
use std::collections::BTreeMap;

/// The state of a log.
pub(super) fn whole(id: &SandboxId, log: &Replay<'_>) -> Result<Whole, DriverError> {
    let failed = |file: &str| {
        let (id, file) = (id.clone(), file.to_owned());
        move |source| DriverError::Decode { id, file, source }
    };
    let mut whole = Whole::default();
    let mut found = false;
    for (name, kept) in &log.documents {
        match name.split_once('/') {
            Some((container, _)) => {
                let state =
                    decode_container(kept.content, Tolerance::Strict).map_err(failed(name))?;
                whole.containers.insert(container.to_owned(), state);
            }
            None if *name == OWN_FILE => {
                let record = OwnRecord::decode(kept.content)
                    .map_err(|source| DriverError::Record { id: id.clone(), source })?;
                whole.record = Some(record);
            }
            None => {
                found = true;
                whole.sandbox =
                    decode_sandbox(kept.content, Tolerance::Strict).map_err(failed(name))?;
            }
        }
    }
    if !found {
        return Err(DriverError::Absent(id.clone()));
    }
    whole.sandbox = belongs(id, whole.sandbox)?;
    Ok(whole)
}

/// A state whose id is that of its directory.
pub(super) fn belongs(id: &SandboxId, sandbox: SandboxState) -> Result<SandboxState, DriverError> {
    if sandbox.sandbox_container == id.as_str() {
        return Ok(sandbox);
    }
    Err(DriverError::Misplaced { id: id.clone(), found: sandbox.sandbox_container })
}

/// The document of a container.
fn file_of(container: &str) -> String {
    format!("{container}/{FILE}")
}

/// Documents that are not as they were saved, as bytes.
pub(super) fn changed(
    id: &SandboxId,
    save: &Save<'_>,
    saved: Option<&Whole>,
) -> Result<BTreeMap<String, Vec<u8>>, DriverError> {
    let failed = |container: Option<&str>| {
        let (id, container) = (id.clone(), container.map(str::to_owned));
        move |source| DriverError::Encode { id, container, source }
    };
    let mut documents = BTreeMap::new();
    if saved.is_none_or(|saved| saved.sandbox != *save.sandbox) {
        let bytes = encode_sandbox(save.sandbox).map_err(failed(None))?;
        documents.insert(FILE.to_owned(), bytes);
    }
    for (container, state) in save.containers {
        if saved.is_none_or(|saved| saved.containers.get(container) != Some(state)) {
            let bytes = encode_container(state).map_err(failed(Some(container)))?;
            documents.insert(file_of(container), bytes);
        }
    }
    if let Some(record) = save.record
        && saved.is_none_or(|saved| saved.record.as_ref() != Some(record))
    {
        let failed = |source| DriverError::Record { id: id.clone(), source };
        documents.insert(OWN_FILE.to_owned(), record.encode().map_err(failed)?);
    }
    Ok(documents)
}
