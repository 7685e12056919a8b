//! Decides where the entries of tars go in the tree. Pure: no file is touched, no data is read.
//!
//! Layers are laid one over the other from the bottom up, as every container engine does. The
//! other way round, data that a higher layer replaces would never have to be copied; but where
//! an entry of a higher layer ends up can depend on a symlink of a lower one (`lib/x` over
//! `lib -> usr/lib`), and a hard link may name a file of a lower layer. So replaced data is
//! copied, and its blocks are then given back ([`Writer::discard`](crate::erofs::Writer::discard)).
//!
//! An entry's path is walked in the tree itself, never on the host. Leading slashes mean nothing;
//! symlinks on the way are followed within the tree, with `..` in them stopping at the root as
//! after a chroot; a `..` in the entry's own name is an error, since no honest tar has one.
//!
//! A whiteout hides what *lower* layers put there, wherever in its own layer it stands: names
//! written by the current layer are remembered, and kept.

use std::collections::HashSet;

use crate::erofs::{Content, ErofsError, Kind, Metadata, Name, NameError, Node, NodeId, Tree};
use crate::tar::{Entry, EntryKind};

/// The longest path of an entry, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// How many symlinks may be followed on the way to one entry, as in Linux.
const LINKS_MAX: usize = 40;
/// How many files an image may have: a bound on what a small tar can make us keep in memory.
const NODES_MAX: usize = 4 << 20;

/// Why an entry cannot go into the tree.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The path, or the target of a hard link, is not one a file can have.
    #[error("the path {path:?} in the tar cannot be used")]
    Path {
        /// The path as it stands in the tar.
        path: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The path is longer than 4096 bytes.
    #[error("a path in the tar is {len} bytes long, more than Linux can use: {start:?}...")]
    PathTooLong {
        /// How it begins.
        start: String,
        /// Its length in bytes.
        len: usize,
    },
    /// The entry would replace the root itself by something else than a directory.
    #[error("{path:?} in the tar would replace the root directory")]
    Root {
        /// The path as it stands in the tar.
        path: String,
    },
    /// A part of the path is a file, of the same layer.
    #[error("cannot put {path:?} into the tree: {part:?} on its way is not a directory")]
    NotADirectory {
        /// The path as it stands in the tar.
        path: String,
        /// The part which is something else.
        part: String,
    },
    /// Symlinks on the way go round in circles.
    #[error("cannot put {path:?} into the tree: more than 40 symlinks on its way")]
    SymlinkLoop {
        /// The path as it stands in the tar.
        path: String,
    },
    /// A hard link to what is not there, or to a directory.
    #[error("the hard link {path:?} in the tar leads to {target:?}, which is not a file before it")]
    LinkTarget {
        /// The path as it stands in the tar.
        path: String,
        /// The target as it stands in the tar.
        target: String,
    },
    /// erofs has no place for something about the entry.
    #[error("cannot put {path:?} into an image")]
    Unfit {
        /// The path as it stands in the tar.
        path: String,
        /// Why not.
        source: ErofsError,
    },
    /// More than 4 194 304 files.
    #[error("the image would have more than {NODES_MAX} files, at {path:?} in the tar")]
    TooMany {
        /// The path as it stands in the tar.
        path: String,
    },
}

/// Whether names like `.wh.x` mean that `x` is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// They do: the tar is a layer.
    Apply,
    /// They are files like others.
    Keep,
}

/// A tree which tars are laid into, one after the other.
#[derive(Debug)]
pub struct Plan {
    tree: Tree,
    whiteouts: Whiteouts,
    /// Names the current layer wrote.
    written: HashSet<(NodeId, Name)>,
    freed: Vec<Content>,
    nodes: usize,
}

/// One step on the way to a directory.
#[derive(Debug, Clone)]
enum Step {
    Down(Name),
    Up,
}

/// What to do about directories missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    GiveUp,
}

impl Plan {
    /// An empty tree. Its root is root's, with mode 0755, until a tar says otherwise.
    #[must_use]
    pub fn new(whiteouts: Whiteouts) -> Self {
        Self {
            tree: Tree::new(Metadata::with_mode(0o755)),
            whiteouts,
            written: HashSet::new(),
            freed: Vec::new(),
            nodes: 1,
        }
    }

    /// From here on, entries belong to the next higher layer.
    pub fn next_layer(&mut self) {
        self.written.clear();
    }

    /// Puts an entry into the tree. A node comes back when it is a regular file, whose content
    /// is then to be given to [`fill`](Self::fill).
    ///
    /// # Errors
    /// See [`PlanError`]. The tree is then of no use.
    pub fn place(&mut self, entry: Entry) -> Result<Option<NodeId>, PlanError> {
        let path = Shown(&entry.path);
        let mut parts = confine(&entry.path)?;
        let Some(last) = parts.pop() else {
            if entry.kind != EntryKind::Directory {
                return Err(PlanError::Root { path: path.text() });
            }
            *self.tree.metadata_mut(Tree::ROOT) = entry.metadata;
            return Ok(None);
        };
        if self.whiteouts == Whiteouts::Apply
            && let Some(hidden) = last.as_bytes().strip_prefix(b".wh.")
        {
            self.white_out(&parts, hidden, path)?;
            return Ok(None);
        }
        let Some(parent) = self.walk(&parts, Missing::Make, path)?.pop() else {
            return Ok(None);
        };
        let kind = match entry.kind {
            EntryKind::File => Kind::File(Content::empty()),
            EntryKind::Symlink(target) => Kind::Symlink(target.into()),
            EntryKind::CharDevice(device) => Kind::CharDevice(device),
            EntryKind::BlockDevice(device) => Kind::BlockDevice(device),
            EntryKind::Directory => Kind::empty_directory(),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink(target) => {
                self.hard_link(parent, last, &target, path)?;
                return Ok(None);
            }
        };
        let is_file = matches!(kind, Kind::File(_));
        let node = Node::new(entry.metadata, kind);
        node.check().map_err(|source| PlanError::Unfit { path: path.text(), source })?;
        let id = self.put(parent, last, node, path)?;
        Ok(is_file.then_some(id))
    }

    /// Gives a file its content.
    pub fn fill(&mut self, file: NodeId, content: Content) {
        self.tree.set_content(file, content);
    }

    /// Contents that were replaced since the last call.
    pub fn take_freed(&mut self) -> Vec<Content> {
        std::mem::take(&mut self.freed)
    }

    /// The tree, all tars being laid into it.
    #[must_use]
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// Makes `name` in `parent` be `node`. A directory over a directory keeps what is in it.
    fn put(
        &mut self,
        parent: NodeId,
        name: Name,
        node: Node,
        path: Shown<'_>,
    ) -> Result<NodeId, PlanError> {
        self.written.insert((parent, name.clone()));
        if let Some(old) = self.tree.lookup(parent, &name) {
            if node.kind.is_directory() && self.tree.node(old).kind.is_directory() {
                *self.tree.metadata_mut(old) = node.metadata;
                return Ok(old);
            }
            self.freed.extend(self.tree.unlink(parent, &name));
        }
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(PlanError::TooMany { path: path.text() });
        }
        let part = name.to_string();
        self.tree
            .add(parent, name, node)
            .map_err(|_| PlanError::NotADirectory { path: path.text(), part })
    }

    fn hard_link(
        &mut self,
        parent: NodeId,
        name: Name,
        target: &[u8],
        path: Shown<'_>,
    ) -> Result<(), PlanError> {
        let nowhere = || PlanError::LinkTarget { path: path.text(), target: Shown(target).text() };
        let mut parts = confine(target)?;
        let last = parts.pop().ok_or_else(nowhere)?;
        let way = self.walk(&parts, Missing::GiveUp, path)?;
        let found = way
            .last()
            .and_then(|directory| self.tree.lookup(*directory, &last))
            .filter(|found| !self.tree.node(*found).kind.is_directory())
            .ok_or_else(nowhere)?;
        let old = self.tree.lookup(parent, &name);
        self.written.insert((parent, name.clone()));
        if old == Some(found) {
            return Ok(());
        }
        // What it would replace must not be what it leads to, or through.
        if old.is_some_and(|old| way.contains(&old)) {
            return Err(nowhere());
        }
        self.freed.extend(self.tree.unlink(parent, &name));
        self.tree.link(parent, name, found).map_err(|_| nowhere())
    }

    /// A name beginning with `.wh.`: hides what lower layers put there.
    fn white_out(
        &mut self,
        parent: &[Name],
        hidden: &[u8],
        path: Shown<'_>,
    ) -> Result<(), PlanError> {
        let bad = |source| PlanError::Path { path: path.text(), source };
        let way = self.walk(parent, Missing::GiveUp, path)?;
        if hidden == b".wh..opq" {
            if let Some(directory) = way.last() {
                self.prune(*directory);
            }
            return Ok(());
        }
        // The other names of this form were AUFS's own business.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        let name = Name::new(hidden).map_err(bad)?;
        let Some(directory) = way.last().copied() else { return Ok(()) };
        let Some(child) = self.tree.lookup(directory, &name) else { return Ok(()) };
        self.prune(child);
        let kept = self.written.contains(&(directory, name.clone()))
            || self.tree.children(child).next().is_some();
        if !kept {
            self.freed.extend(self.tree.unlink(directory, &name));
        }
        Ok(())
    }

    /// Removes everything below `directory` that lower layers put there. A directory of theirs
    /// stays when the current layer has put something into it.
    fn prune(&mut self, directory: NodeId) {
        let mut found = Vec::new();
        let mut open = vec![directory];
        while let Some(parent) = open.pop() {
            for (name, child) in self.tree.children(parent) {
                found.push((parent, name.clone(), child));
                open.push(child);
            }
        }
        // Deepest last, so backwards: children go before their directory is looked at.
        for (parent, name, child) in found.into_iter().rev() {
            let has_children = self.tree.children(child).next().is_some();
            let key = (parent, name);
            if !has_children && !self.written.contains(&key) {
                self.freed.extend(self.tree.unlink(parent, &key.1));
            }
        }
    }

    /// Walks from the root through `parts`, and gives the nodes on the way, the root first and
    /// the directory last; nothing when a directory is missing and is not to be made.
    fn walk(
        &mut self,
        parts: &[Name],
        missing: Missing,
        path: Shown<'_>,
    ) -> Result<Vec<NodeId>, PlanError> {
        let mut way = vec![Tree::ROOT];
        let mut steps: Vec<Step> = parts.iter().rev().cloned().map(Step::Down).collect();
        let mut links = 0;
        while let Some(step) = steps.pop() {
            let at = *way.last().unwrap_or(&Tree::ROOT);
            let name = match step {
                Step::Up => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                Step::Down(name) => name,
            };
            let child = self.tree.lookup(at, &name);
            match child.map(|child| (child, &self.tree.node(child).kind)) {
                Some((child, Kind::Directory(_))) => way.push(child),
                Some((_, Kind::Symlink(target))) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(PlanError::SymlinkLoop { path: path.text() });
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    steps.extend(follow(target, path)?);
                }
                _ if missing == Missing::GiveUp => return Ok(Vec::new()),
                Some(_) if self.written.contains(&(at, name.clone())) => {
                    return Err(PlanError::NotADirectory {
                        path: path.text(),
                        part: name.to_string(),
                    });
                }
                Some(_) | None => {
                    let node = Node::new(Metadata::with_mode(0o755), Kind::empty_directory());
                    way.push(self.put(at, name, node, path)?);
                }
            }
        }
        Ok(way)
    }
}

/// A path as it is shown in messages.
#[derive(Debug, Clone, Copy)]
struct Shown<'a>(&'a [u8]);

impl Shown<'_> {
    fn text(self) -> String {
        String::from_utf8_lossy(self.0).into_owned()
    }
}

/// The parts of an entry's path, from the root on.
fn confine(path: &[u8]) -> Result<Vec<Name>, PlanError> {
    if path.len() > PATH_MAX {
        let start = String::from_utf8_lossy(&path[..64]).into_owned();
        return Err(PlanError::PathTooLong { start, len: path.len() });
    }
    let bad = |source| PlanError::Path { path: Shown(path).text(), source };
    if path.is_empty() {
        return Err(bad(NameError::Empty));
    }
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| Name::new(part).map_err(bad))
        .collect()
}

/// The steps a symlink's target asks for, the first of them last.
fn follow(target: &[u8], path: Shown<'_>) -> Result<Vec<Step>, PlanError> {
    let bad = |source| PlanError::Path { path: path.text(), source };
    let parts = target.rsplit(|byte| *byte == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| match part {
            b".." => Ok(Step::Up),
            name => Name::new(name).map(Step::Down).map_err(bad),
        })
        .collect()
}

#[cfg(test)]
mod tests;
