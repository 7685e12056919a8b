//! All that can go wrong with an image, each with a stable code and a way out.

use std::io;
use std::path::PathBuf;

use crate::directory::DirectoryError;
use crate::erofs::ErofsError;
use crate::oci::OciError;
use crate::plan::PlanError;
use crate::progress::Cancelled;
use crate::source::SourceError;
use crate::store::StoreError;
use crate::tar::TarError;
use crate::unpack::UnpackError;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The source is not there, or nothing we know.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A directory could not be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A tar could not be unpacked.
    #[error("cannot unpack {path:?}")]
    Tar {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: UnpackError,
    },
    /// An OCI image could not be read.
    #[error(transparent)]
    Oci(OciError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image could not be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// A compressed archive could not be unpacked into a temporary file.
    #[error("cannot write a temporary file in {path:?}")]
    Temporary {
        /// In which folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<OciError> for ImageError {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Oci(error),
        }
    }
}

/// A stable code, and what to do.
type Advice = (&'static str, &'static str);

const SPACE: &str = "check the space left and the permissions of the image store: df -h";
const REPORT: &str = "make the tar anew, for instance with `tar --xattrs --numeric-owner`";
const AGAIN: &str = "fetch the image again: what is here is damaged";
const QUIET: &str = "stop what writes to it, or make a copy, and try again";

impl ImageError {
    /// Stable code of the error, `E-IMAGE-DIGEST` for instance.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.advice().0
    }

    /// What to do about it, in one line.
    #[must_use]
    pub fn help(&self) -> &'static str {
        self.advice().1
    }

    fn advice(&self) -> Advice {
        match self {
            Self::Source(error) => source(error),
            Self::Directory(error) => directory(error),
            Self::Tar { source, .. } => unpack(source),
            Self::Oci(error) => oci(error),
            Self::Store(StoreError::Io { .. }) => ("E-IMAGE-STORE", SPACE),
            Self::Store(StoreError::InUse { .. }) => {
                ("E-IMAGE-IN-USE", "stop the sandboxes that use it: coracle ps")
            }
            Self::Erofs(error) => erofs(error),
            Self::Temporary { .. } => ("E-IMAGE-TEMPORARY", SPACE),
            Self::Cancelled(Cancelled) => CANCELLED,
        }
    }
}

const CANCELLED: Advice = ("E-IMAGE-CANCELLED", "run the command again");

fn source(error: &SourceError) -> Advice {
    match error {
        SourceError::Missing { .. } => (
            "E-IMAGE-MISSING",
            "give a directory, a tar, an OCI layout or archive; or none, for the built-in one",
        ),
        SourceError::Read { .. } => ("E-IMAGE-READ", "check its permissions: ls -l"),
        SourceError::Changed { .. } => ("E-IMAGE-CHANGED", QUIET),
        SourceError::Unknown { .. } => (
            "E-IMAGE-KIND",
            "give a directory, a tar (plain, gzip or zstd), an OCI layout or archive",
        ),
    }
}

fn directory(error: &DirectoryError) -> Advice {
    match error {
        DirectoryError::Io { .. } => {
            ("E-IMAGE-DIRECTORY", "run as a user who may read all of the directory")
        }
        DirectoryError::Changed { .. } => ("E-IMAGE-DIRECTORY-CHANGED", QUIET),
        DirectoryError::TooDeep { .. } => ("E-IMAGE-DEPTH", "give a tar of the directory"),
        DirectoryError::Unfit { source, .. } | DirectoryError::Erofs(source) => erofs(source),
        DirectoryError::Cancelled(Cancelled) => CANCELLED,
    }
}

fn unpack(error: &UnpackError) -> Advice {
    match error {
        UnpackError::Open(_) => {
            ("E-IMAGE-COMPRESSION", "use gzip, zstd or no compression: unxz FILE, bunzip2 FILE")
        }
        UnpackError::Tar(error) => tar(error),
        UnpackError::Plan(error) => plan(error),
        UnpackError::Erofs(error) => erofs(error),
        UnpackError::Cancelled(Cancelled) => CANCELLED,
    }
}

fn tar(error: &TarError) -> Advice {
    match error {
        TarError::Truncated { .. } => ("E-IMAGE-TRUNCATED", AGAIN),
        TarError::Read { .. } => ("E-IMAGE-TAR-READ", AGAIN),
        TarError::Header { .. } => ("E-IMAGE-TAR-HEADER", AGAIN),
        TarError::Record { .. } => ("E-IMAGE-TAR-RECORD", AGAIN),
        TarError::Oversized { .. } => ("E-IMAGE-TAR-OVERSIZED", REPORT),
        TarError::Kind { .. } => ("E-IMAGE-TAR-KIND", REPORT),
    }
}

fn plan(error: &PlanError) -> Advice {
    const DISTRUST: &str = "do not trust this tar: list it with `tar -tvf` first";
    match error {
        PlanError::Path { .. } => ("E-IMAGE-PATH", DISTRUST),
        PlanError::PathTooLong { .. } => ("E-IMAGE-PATH-LONG", DISTRUST),
        PlanError::Root { .. } => ("E-IMAGE-ROOT", DISTRUST),
        PlanError::NotADirectory { .. } => ("E-IMAGE-NOT-A-DIRECTORY", REPORT),
        PlanError::SymlinkLoop { .. } => ("E-IMAGE-SYMLINK-LOOP", DISTRUST),
        PlanError::LinkTarget { .. } => ("E-IMAGE-LINK-TARGET", REPORT),
        PlanError::Unfit { source, .. } => erofs(source),
        PlanError::TooMany { .. } => {
            ("E-IMAGE-TOO-MANY", "split it, or mount a part of it as a share")
        }
    }
}

fn oci(error: &OciError) -> Advice {
    const NAME: &str = "name one of them: PATH:NAME";
    match error {
        OciError::Read { .. } => ("E-IMAGE-BLOB", AGAIN),
        OciError::Document { .. } => ("E-IMAGE-DOCUMENT", AGAIN),
        OciError::Algorithm { .. } => {
            ("E-IMAGE-ALGORITHM", "copy the image with a tool that writes SHA-256: skopeo copy")
        }
        OciError::Digest { .. } => ("E-IMAGE-DIGEST", AGAIN),
        OciError::Size { .. } => ("E-IMAGE-SIZE", AGAIN),
        OciError::Layer { source, .. } => unpack(source),
        OciError::Reference { .. } => ("E-IMAGE-REFERENCE", NAME),
        OciError::Ambiguous { .. } => ("E-IMAGE-AMBIGUOUS", NAME),
        OciError::Platform { .. } => {
            ("E-IMAGE-PLATFORM", "fetch the image for this machine's architecture")
        }
        OciError::MediaType { .. } => {
            ("E-IMAGE-MEDIA-TYPE", "decrypt or convert the image: skopeo copy")
        }
        OciError::Cancelled(Cancelled) => CANCELLED,
    }
}

fn erofs(error: &ErofsError) -> Advice {
    match error {
        ErofsError::Write(_) => ("E-IMAGE-WRITE", SPACE),
        ErofsError::ImageTooLarge => {
            ("E-IMAGE-TOO-LARGE", "take large files out and give them as a share")
        }
        ErofsError::XattrsTooLarge => ("E-IMAGE-XATTR-SIZE", "remove the attribute: setfattr -x"),
        ErofsError::XattrName { .. } => ("E-IMAGE-XATTR-NAME", "remove the attribute: setfattr -x"),
        ErofsError::DeviceNumber { .. } => ("E-IMAGE-DEVICE", "remove the device node"),
        ErofsError::SymlinkTarget => ("E-IMAGE-SYMLINK", "remove the symlink"),
    }
}
