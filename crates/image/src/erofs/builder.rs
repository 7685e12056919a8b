//! Builds an image by paths: for trees that are written down in code.
//!
//! Everything belongs to root and has the time 0, so that the same calls give the same bytes.

use std::fs::File;
use std::io::{self, Read};

use super::tree::{DeviceNumber, Kind, Metadata, Name, NameError, Node, NodeId, Tree, TreeError};
use super::writer::{ErofsError, Writer, Written};

/// Why something could not be put into an image by its path.
#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    /// A part of the path is no file name.
    #[error("cannot use {path:?} as a path in the image")]
    Path {
        /// The path given.
        path: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The tree has no place for it.
    #[error("cannot add {path:?} to the image")]
    Add {
        /// The path given.
        path: String,
        /// Why not.
        source: TreeError,
    },
    /// A hard link's target does not exist.
    #[error("cannot link {path:?} to {target:?}, which is not in the image")]
    LinkTarget {
        /// The path given.
        path: String,
        /// What it was to be linked to.
        target: String,
    },
    /// The content could not be read.
    #[error("cannot read what is to be {path:?} in the image")]
    Read {
        /// The path given.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The image could not be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

/// An image built by paths. Parents that are missing are made, with mode 0755.
#[derive(Debug)]
pub struct Builder {
    writer: Writer,
    tree: Tree,
}

impl Builder {
    /// Starts an image in `out`, an empty file open for writing.
    #[must_use]
    pub fn new(out: File) -> Self {
        Self { writer: Writer::new(out), tree: Tree::new(Metadata::with_mode(0o755)) }
    }

    /// Adds a directory, or sets the mode of one that is there.
    ///
    /// # Errors
    /// [`BuilderError::Path`], [`BuilderError::Add`].
    pub fn directory(&mut self, path: &str, mode: u16) -> Result<(), BuilderError> {
        let parts = split(path)?;
        let id = self.walk(path, &parts)?;
        self.tree.metadata_mut(id).mode = mode;
        Ok(())
    }

    /// Adds a regular file with what `content` gives.
    ///
    /// # Errors
    /// Any [`BuilderError`].
    pub fn file(
        &mut self,
        path: &str,
        mode: u16,
        content: &mut dyn Read,
    ) -> Result<(), BuilderError> {
        let mut file = self.writer.file();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => file.write(&buffer[..len])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BuilderError::Read { path: path.into(), source }),
            }
        }
        let kind = Kind::File(file.finish()?);
        self.node(path, Node::new(Metadata::with_mode(mode), kind))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`BuilderError::Path`], [`BuilderError::Add`].
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), BuilderError> {
        let kind = Kind::Symlink(target.as_bytes().into());
        self.node(path, Node::new(Metadata::with_mode(0o777), kind))
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// [`BuilderError::Path`], [`BuilderError::Add`].
    pub fn char_device(
        &mut self,
        path: &str,
        mode: u16,
        major: u32,
        minor: u32,
    ) -> Result<(), BuilderError> {
        let kind = Kind::CharDevice(DeviceNumber { major, minor });
        self.node(path, Node::new(Metadata::with_mode(mode), kind))
    }

    /// Gives the file at `target` the second name `path`.
    ///
    /// # Errors
    /// [`BuilderError::Path`], [`BuilderError::Add`], [`BuilderError::LinkTarget`].
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<(), BuilderError> {
        let found = split(target)?
            .iter()
            .try_fold(Tree::ROOT, |at, name| self.tree.lookup(at, name))
            .ok_or_else(|| BuilderError::LinkTarget { path: path.into(), target: target.into() })?;
        let (parent, name) = self.parent(path)?;
        self.tree
            .link(parent, name, found)
            .map_err(|source| BuilderError::Add { path: path.into(), source })
    }

    /// Adds any node.
    ///
    /// # Errors
    /// [`BuilderError::Path`], [`BuilderError::Add`].
    pub fn node(&mut self, path: &str, node: Node) -> Result<(), BuilderError> {
        let (parent, name) = self.parent(path)?;
        self.tree
            .add(parent, name, node)
            .map_err(|source| BuilderError::Add { path: path.into(), source })?;
        Ok(())
    }

    /// Writes the tree and hands the file back, unsynced.
    ///
    /// # Errors
    /// [`BuilderError::Erofs`].
    pub fn finish(self) -> Result<(File, Written), BuilderError> {
        Ok(self.writer.finish(&self.tree)?)
    }

    /// The directory that is to hold `path`, and the last part of it.
    fn parent(&mut self, path: &str) -> Result<(NodeId, Name), BuilderError> {
        let mut parts = split(path)?;
        let last = parts
            .pop()
            .ok_or_else(|| BuilderError::Path { path: path.into(), source: NameError::Empty })?;
        Ok((self.walk(path, &parts)?, last))
    }

    /// The directory at `parts`, made if need be.
    fn walk(&mut self, path: &str, parts: &[Name]) -> Result<NodeId, BuilderError> {
        parts.iter().try_fold(Tree::ROOT, |at, name| match self.tree.lookup(at, name) {
            Some(child) => Ok(child),
            None => {
                let node = Node::new(Metadata::with_mode(0o755), Kind::empty_directory());
                self.tree
                    .add(at, name.clone(), node)
                    .map_err(|source| BuilderError::Add { path: path.into(), source })
            }
        })
    }
}

fn split(path: &str) -> Result<Vec<Name>, BuilderError> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| Name::new(part.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|source| BuilderError::Path { path: path.into(), source })
}
