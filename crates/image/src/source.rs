//! What a root file system is made from, found out by looking at it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::compression::Decoder;
use crate::erofs;
use crate::oci::{Section, is_image};
use crate::tar::{Reader, TarError};

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory that is the root file system.
    Directory,
    /// A tar of the root file system, plain or compressed with gzip or zstd.
    Tar,
    /// A directory in the OCI image layout.
    OciLayout,
    /// A tar of an OCI layout, or what `docker save` writes; plain or compressed.
    Archive,
    /// An erofs image, to be used as it is.
    Erofs,
}

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is nothing.
    #[error("there is no root file system at {path:?}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It cannot be opened or read.
    #[error("cannot read the root file system {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file changed while it was read.
    #[error("{path:?} changed while the image was made from it")]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// It is no directory, tar, OCI image or erofs image.
    #[error("{path:?} is {found}")]
    Unknown {
        /// Which.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
}

/// Something a root file system can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    kind: SourceKind,
    reference: Option<String>,
}

impl Source {
    /// A source known to be of this kind.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, kind: SourceKind) -> Self {
        Self { path: path.into(), kind, reference: None }
    }

    /// An erofs image that is ready, such as the built-in root file system.
    #[must_use]
    pub fn prepared(path: impl Into<PathBuf>) -> Self {
        Self::new(path, SourceKind::Erofs)
    }

    /// Finds out what is at `path`, from its content alone: names say nothing. When there is
    /// nothing, but something before a colon in it, the rest is the name of an image in there:
    /// `images.tar:debian:12`.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn detect(path: &Path) -> Result<Self, SourceError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SourceError::Missing { path: path.to_owned() },
            _ => SourceError::Read { path: path.to_owned(), source },
        };
        let stat = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (place, name) = split_name(path).ok_or_else(|| failed(error))?;
                return Ok(Self::detect(place)?.with_reference(name));
            }
            stat => stat.map_err(failed)?,
        };
        let kind = if stat.is_dir() {
            let has = |name| path.join(name).is_file();
            if has("oci-layout") && has("index.json") {
                SourceKind::OciLayout
            } else {
                SourceKind::Directory
            }
        } else if stat.is_file() {
            detect_file(&File::open(path).map_err(failed)?, path)?
        } else {
            let found = "neither a file nor a directory".to_owned();
            return Err(SourceError::Unknown { path: path.to_owned(), found });
        };
        Ok(Self::new(path, kind))
    }

    /// The image of this name, where several are in one place.
    #[must_use]
    pub fn with_reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Which image is meant, where there are several.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }
}

/// Splits `PLACE:NAME` at the first colon that has something that exists before it.
fn split_name(path: &Path) -> Option<(&Path, &str)> {
    let text = path.to_str()?;
    text.match_indices(':')
        .map(|(at, _)| (Path::new(&text[..at]), &text[at + 1..]))
        .find(|(place, name)| !name.is_empty() && place.exists())
}

fn detect_file(file: &File, path: &Path) -> Result<SourceKind, SourceError> {
    let read = |source| SourceError::Read { path: path.to_owned(), source };
    let unknown = |found: String| SourceError::Unknown { path: path.to_owned(), found };
    let mut start = Vec::new();
    Section::whole(file)
        .map_err(read)?
        .take(erofs::HEAD as u64)
        .read_to_end(&mut start)
        .map_err(read)?;
    if erofs::is_image(&start) {
        return Ok(SourceKind::Erofs);
    }
    if start.is_empty() {
        return Err(unknown("an empty file".to_owned()));
    }
    let compressed = crate::compression::is_compressed(&start);
    let verdict = if compressed {
        match Decoder::new(Section::whole(file).map_err(read)?) {
            // There is no jumping in a compressed stream.
            Ok(decoder) => is_image(&mut Reader::new(decoder), |_, _| false),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Err(unknown(error.to_string()));
            }
            Err(error) => return Err(read(error)),
        }
    } else {
        is_image(&mut Reader::new(Section::whole(file).map_err(read)?), Section::skip)
    };
    let no_tar = || unknown("neither a tar nor an image".to_owned());
    match verdict {
        Ok(true) => Ok(SourceKind::Archive),
        Ok(false) => Ok(SourceKind::Tar),
        Err(TarError::Header { at: 0, .. }) => Err(no_tar()),
        Err(TarError::Truncated { at: 0..512, entry: None }) if !compressed => Err(no_tar()),
        // A tar with something wrong in it: unpacking will say what.
        Err(_) => Ok(SourceKind::Tar),
    }
}
