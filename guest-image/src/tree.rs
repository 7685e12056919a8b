//! The files of an image, whatever format they end up in.

use std::borrow::Cow;
use std::collections::BTreeSet;

use coracle_image::erofs::{Builder, BuilderError};

/// One file or directory; the path is relative to the root.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    pub node: Node<'a>,
}

/// What an [`Entry`] is.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Directory,
    File(Cow<'a, [u8]>),
    Symlink(String),
}

impl<'a> Entry<'a> {
    pub(crate) fn directory(path: impl Into<String>, mode: u16) -> Self {
        Self { path: path.into(), mode, node: Node::Directory }
    }

    pub(crate) fn file(
        path: impl Into<String>,
        mode: u16,
        content: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self { path: path.into(), mode, node: Node::File(content.into()) }
    }

    pub(crate) fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o777, node: Node::Symlink(target.into()) }
    }
}

/// Puts the directories no entry names, but which hold one, before all entries.
pub(crate) fn with_parents(entries: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    let named: BTreeSet<String> = entries.iter().map(|entry| entry.path.clone()).collect();
    let parents: BTreeSet<String> = entries
        .iter()
        .flat_map(|Entry { path, .. }| path.match_indices('/').filter_map(|(at, _)| path.get(..at)))
        .filter(|parent| !named.contains(*parent))
        .map(str::to_owned)
        .collect();
    parents.into_iter().map(|path| Entry::directory(path, 0o755)).chain(entries).collect()
}

/// Writes the entries as an erofs image into `out`, an empty file.
pub(crate) fn write_erofs(entries: &[Entry<'_>], out: std::fs::File) -> Result<(), BuilderError> {
    let mut builder = Builder::new(out);
    for Entry { path, mode, node } in entries {
        match node {
            Node::Directory => builder.directory(path, *mode)?,
            Node::File(content) => builder.file(path, *mode, &mut content.as_ref())?,
            Node::Symlink(target) => builder.symlink(path, target)?,
        }
    }
    builder.finish()?;
    Ok(())
}
