//! The tree of an image while it is put together: nodes in an arena, names in order.
//!
//! A node may have several names (hard links), so names live in directories and nodes live in the
//! arena. Nothing here touches the host: a name is bytes that the file system can hold, and a
//! file's content is a [`Content`] which the [`Writer`](super::Writer) handed out. The tree counts
//! the names of every node; when the last one goes, [`Tree::unlink`] hands back the contents that
//! nobody can reach any more, so that their blocks can be given up.

use std::collections::BTreeMap;
use std::fmt;

use super::format;
use super::writer::{Content, ErofsError};

/// The longest name one directory entry can have, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// One component of a path: 1 to 255 bytes without `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why some bytes cannot be the name of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// `.` or `..`, which every directory has already.
    #[error("contains `.` or `..`")]
    Dots,
    /// A slash or a NUL byte.
    #[error("contains a slash or a NUL byte")]
    Byte,
    /// More than [`NAME_MAX`] bytes.
    #[error("has a part longer than 255 bytes")]
    Long,
}

impl Name {
    /// Checks `bytes` and takes them as a name.
    ///
    /// # Errors
    /// A [`NameError`] that says which rule is broken.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        match bytes {
            [] => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dots),
            _ if bytes.contains(&b'/') || bytes.contains(&0) => Err(NameError::Byte),
            _ if bytes.len() > NAME_MAX => Err(NameError::Long),
            _ => Ok(Self(bytes.into())),
        }
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Which node of a [`Tree`]; meaningful only for the tree that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

/// A point in time: seconds since 1970 (negative before) and nanoseconds (0 to 999 999 999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// Extended attributes by full name (`security.capability`), in order.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every node has, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky (the low 12 bits; the rest is ignored).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Root's, with these permission bits and the time 0.
    #[must_use]
    pub fn with_mode(mode: u16) -> Self {
        Self { mode, ..Self::default() }
    }
}

/// The number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceNumber {
    /// Major number, at most 4095.
    pub major: u32,
    /// Minor number, at most 1 048 575.
    pub minor: u32,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A directory and its names.
    Directory(BTreeMap<Name, NodeId>),
    /// A regular file.
    File(Content),
    /// A symbolic link and its target (1 to 4095 bytes, no NUL).
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl Kind {
    /// A directory with nothing in it.
    #[must_use]
    pub fn empty_directory() -> Self {
        Self::Directory(BTreeMap::new())
    }

    /// True for a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// One file, directory or special file.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Owner, mode, times, attributes.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
    /// How many directory entries name it.
    pub(super) names: u32,
}

impl Node {
    /// A node nobody names yet.
    #[must_use]
    pub fn new(metadata: Metadata, kind: Kind) -> Self {
        Self { metadata, kind, names: 0 }
    }

    /// How many directory entries name it.
    #[must_use]
    pub fn names(&self) -> u32 {
        self.names
    }

    /// Checks that erofs has a place for everything about the node, so that an error can name
    /// the file it is about; [`Writer::finish`](super::Writer::finish) would find it too late.
    ///
    /// # Errors
    /// [`ErofsError::XattrsTooLarge`], [`ErofsError::XattrName`], [`ErofsError::DeviceNumber`],
    /// [`ErofsError::SymlinkTarget`].
    pub fn check(&self) -> Result<(), ErofsError> {
        format::check_xattrs(&self.metadata.xattrs)?;
        match &self.kind {
            Kind::Symlink(target) => format::check_target(target),
            Kind::CharDevice(device) | Kind::BlockDevice(device) => {
                format::encode_device(*device).map(drop)
            }
            Kind::Directory(_) | Kind::File(_) | Kind::Fifo | Kind::Socket => Ok(()),
        }
    }
}

/// Why a name cannot be put where it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The parent is not a directory.
    #[error("the parent is not a directory")]
    NotADirectory,
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// A directory can have only one name.
    #[error("a directory cannot have a second name")]
    LinkedDirectory,
}

/// A file system tree in memory. See the module's head.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory, which every tree has.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of only a root directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        Self { nodes: vec![Node::new(root, Kind::empty_directory())] }
    }

    /// The node `id` of this tree.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The node's metadata, to be changed.
    pub fn metadata_mut(&mut self, id: NodeId) -> &mut Metadata {
        &mut self.nodes[id.0].metadata
    }

    /// How many nodes the arena has, unreachable ones included.
    pub(super) fn arena_len(&self) -> usize {
        self.nodes.len()
    }

    /// The names in directory `id`; none when it is no directory.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = (&Name, NodeId)> {
        let names = match &self.node(id).kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, child)| (name, *child))
    }

    /// What `name` is in directory `parent`.
    #[must_use]
    pub fn lookup(&self, parent: NodeId, name: &Name) -> Option<NodeId> {
        match &self.node(parent).kind {
            Kind::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    /// Adds `node` as `name` in `parent`.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn add(&mut self, parent: NodeId, name: Name, node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId(self.nodes.len());
        self.vacant(parent, &name)?;
        self.nodes.push(Node { names: 0, ..node });
        self.enter(parent, name, id);
        Ok(id)
    }

    /// Gives the node `target` one more name (a hard link).
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn link(&mut self, parent: NodeId, name: Name, target: NodeId) -> Result<(), TreeError> {
        if self.node(target).kind.is_directory() {
            return Err(TreeError::LinkedDirectory);
        }
        self.vacant(parent, &name)?;
        self.enter(parent, name, target);
        Ok(())
    }

    /// Takes `name` out of `parent`, with all that is below it, and returns the contents which
    /// no name reaches any more. A name that is not there is no error.
    pub fn unlink(&mut self, parent: NodeId, name: &Name) -> Vec<Content> {
        let Kind::Directory(names) = &mut self.nodes[parent.0].kind else { return Vec::new() };
        let Some(first) = names.remove(name) else { return Vec::new() };
        let mut freed = Vec::new();
        let mut lost = vec![first];
        while let Some(id) = lost.pop() {
            let node = &mut self.nodes[id.0];
            node.names = node.names.saturating_sub(1);
            if node.names > 0 {
                continue;
            }
            match std::mem::replace(&mut node.kind, Kind::Fifo) {
                Kind::Directory(names) => lost.extend(names.into_values()),
                Kind::File(content) => freed.push(content),
                Kind::Symlink(_)
                | Kind::CharDevice(_)
                | Kind::BlockDevice(_)
                | Kind::Fifo
                | Kind::Socket => {}
            }
        }
        freed
    }

    /// Puts `content` into the file `id`; anything but a file is left as it is.
    pub fn set_content(&mut self, id: NodeId, content: Content) {
        if let Kind::File(old) = &mut self.nodes[id.0].kind {
            *old = content;
        }
    }

    fn vacant(&self, parent: NodeId, name: &Name) -> Result<(), TreeError> {
        match &self.node(parent).kind {
            Kind::Directory(names) if names.contains_key(name) => Err(TreeError::Exists),
            Kind::Directory(_) => Ok(()),
            _ => Err(TreeError::NotADirectory),
        }
    }

    fn enter(&mut self, parent: NodeId, name: Name, child: NodeId) {
        if let Kind::Directory(names) = &mut self.nodes[parent.0].kind {
            names.insert(name, child);
            self.nodes[child.0].names += 1;
        }
    }
}
