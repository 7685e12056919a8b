//! A sandbox as documents, and documents as a sandbox.

use super::error::DriverError;
use super::record::OwnRecord;
use super::{Save, Whole};
use crate::codec::{Document, EncodeError, decode_saved, encode_container, encode_sandbox};
use crate::id::SandboxId;
use crate::model::{ContainerState, SandboxState};
use crate::store::{FILE, OWN_FILE, Replay};
use std::collections::BTreeMap;

/// The state of a log.
pub(super) fn whole(id: &SandboxId, log: &Replay<'_>) -> Result<Whole, DriverError> {
    whole_of(id, log.documents.iter().map(|(name, kept)| (*name, kept.content)))
}

/// The state that documents make.
pub(super) fn whole_of<'a>(
    id: &SandboxId,
    documents: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Whole, DriverError> {
    let failed = |file: &str| {
        let (id, file) = (id.clone(), file.to_owned());
        move |source| DriverError::Decode { id, file, source }
    };
    let mut whole = Whole::default();
    let mut found = false;
    for (name, content) in documents {
        match name.split_once('/') {
            Some((container, _)) => {
                let state = decode_saved(content, Document::Container).map_err(failed(name))?;
                whole.containers.insert(container.to_owned(), state);
            }
            None if name == OWN_FILE => {
                let record = OwnRecord::decode(content)
                    .map_err(|source| DriverError::Record { id: id.clone(), source })?;
                whole.record = Some(record);
            }
            None => {
                found = true;
                whole.sandbox = decode_saved(content, Document::Sandbox).map_err(failed(name))?;
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

/// The name of a container's document.
pub(super) fn file_of(container: &str) -> String {
    format!("{container}/{FILE}")
}

/// Everything that is to be saved, as documents.
pub(super) fn documents(
    id: &SandboxId,
    save: &Save<'_>,
) -> Result<BTreeMap<String, Vec<u8>>, DriverError> {
    let mut documents = BTreeMap::new();
    let source = encode_sandbox(save.sandbox);
    documents.insert(FILE.to_owned(), source.map_err(cannot_encode(id, None))?);
    for (container, state) in save.containers {
        documents.insert(file_of(container), container_document(id, container, state)?);
    }
    if let Some(record) = save.record {
        let failed = |source| DriverError::Record { id: id.clone(), source };
        documents.insert(OWN_FILE.to_owned(), record.encode().map_err(failed)?);
    }
    Ok(documents)
}

/// The document of one container.
pub(super) fn container_document(
    id: &SandboxId,
    container: &str,
    state: &ContainerState,
) -> Result<Vec<u8>, DriverError> {
    encode_container(state).map_err(cannot_encode(id, Some(container)))
}

fn cannot_encode(
    id: &SandboxId,
    container: Option<&str>,
) -> impl FnOnce(EncodeError) -> DriverError + use<> {
    let (id, container) = (id.clone(), container.map(str::to_owned));
    move |source| DriverError::Encode { id, container, source }
}
