//! From a source to an image: first what names it, then its bytes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compression::{Decoder, is_compressed};
use crate::config::ImageConfig;
use crate::digest::{Digest, Hasher};
use crate::directory::{self, Scan};
use crate::erofs::{Writer, Written};
use crate::error::ImageError;
use crate::oci::{self, Blobs, Found, Section};
use crate::plan::{Plan, Whiteouts};
use crate::progress::{Phase, Progress, step};
use crate::source::{Source, SourceError, SourceKind};
use crate::tar::TarError;
use crate::unpack::{UnpackError, unpack};

/// Part of every key: to be raised when the same source shall give another image.
const FORMAT: &str = "coracle image 1";

/// How much is read at a time.
const PIECE: usize = 1 << 20;

/// A source that was looked at closely enough to name its image, and is ready to be read.
#[derive(Debug)]
pub(crate) enum Input {
    Directory(Box<Scan>),
    Tar { file: File, digest: Digest },
    Oci { blobs: Box<Blobs>, found: Box<Found> },
}

impl Input {
    /// Looks at `source`. `temporary` is a folder for the unpacked form of a compressed archive.
    pub(crate) fn examine(
        source: &Source,
        temporary: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Self, ImageError> {
        let path = source.path();
        match source.kind() {
            SourceKind::Directory => {
                progress.begin(Phase::Scan, None);
                Ok(Self::Directory(Box::new(directory::scan(path, progress)?)))
            }
            SourceKind::Tar => {
                let file = open(path)?;
                let digest = digest(&file, path, progress)?;
                Ok(Self::Tar { file, digest })
            }
            SourceKind::OciLayout => {
                let blobs = Box::new(Blobs::directory(path));
                let found = Box::new(oci::find(&blobs, source.reference())?);
                Ok(Self::Oci { blobs, found })
            }
            SourceKind::Archive => {
                let file = uncompressed(open(path)?, path, temporary, progress)?;
                let blobs = Blobs::archive(file, path)
                    .map_err(|error| tar_error(path, UnpackError::Tar(error)))?;
                let blobs = Box::new(blobs);
                let found = Box::new(oci::find(&blobs, source.reference())?);
                Ok(Self::Oci { blobs, found })
            }
            SourceKind::Erofs => {
                let found = "an erofs image already".to_owned();
                Err(SourceError::Unknown { path: path.to_owned(), found }.into())
            }
        }
    }

    /// What names the content.
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Directory(scan) => scan.key,
            Self::Tar { digest, .. } => *digest,
            Self::Oci { found, .. } => found.digest,
        }
    }

    /// What names the image: the content and the way it is turned into an image.
    pub(crate) fn key(&self) -> Digest {
        let kind = match self {
            Self::Directory(_) => "directory",
            Self::Tar { .. } => "tar",
            Self::Oci { .. } => "oci",
        };
        let mut hasher = Hasher::default();
        hasher.field(FORMAT.as_bytes());
        hasher.field(kind.as_bytes());
        hasher.field(self.digest().to_string().as_bytes());
        hasher.digest()
    }

    /// How to run it, as far as the source says.
    pub(crate) fn config(&self) -> ImageConfig {
        match self {
            Self::Directory(_) | Self::Tar { .. } => ImageConfig::default(),
            Self::Oci { found, .. } => found.config.clone(),
        }
    }
}

/// Makes the image in `out`, an empty file.
pub(crate) fn build(
    source: &Source,
    input: Input,
    out: File,
    progress: &mut dyn Progress,
) -> Result<(File, Written), ImageError> {
    let path = source.path();
    let mut writer = Writer::new(out);
    let tree = match input {
        Input::Directory(scan) => {
            progress.begin(Phase::Copy, Some(scan.bytes));
            directory::copy(*scan, path, &mut writer, progress)?
        }
        Input::Tar { file, .. } => {
            let before = stamp(&file, path)?;
            progress.begin(Phase::Copy, Some(before.0));
            let mut plan = Plan::new(Whiteouts::Keep);
            let mut section = Section::whole(&file).map_err(read_error(path))?;
            unpack(&mut section, &mut plan, &mut writer, progress)
                .map_err(|error| tar_error(path, error))?;
            unchanged(&file, path, before)?;
            plan.into_tree()
        }
        Input::Oci { blobs, found } => oci::copy(&blobs, &found, &mut writer, progress)?,
    };
    progress.begin(Phase::Finish, None);
    Ok(writer.finish(&tree)?)
}

/// The digest of a whole file, which must not change meanwhile.
fn digest(file: &File, path: &Path, progress: &mut dyn Progress) -> Result<Digest, ImageError> {
    let before = stamp(file, path)?;
    progress.begin(Phase::Digest, Some(before.0));
    let mut section = Section::whole(file).map_err(read_error(path))?;
    let mut hasher = Hasher::default();
    each_piece(&mut section, path, progress, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    unchanged(file, path, before)?;
    Ok(hasher.digest())
}

/// The archive itself, or what is in it when it is compressed, in an unnamed file.
fn uncompressed(
    file: File,
    path: &Path,
    temporary: &Path,
    progress: &mut dyn Progress,
) -> Result<File, ImageError> {
    let mut magic = [0; 6];
    let section = || Section::whole(&file).map_err(read_error(path));
    let len = section()?.read(&mut magic).map_err(read_error(path))?;
    if !is_compressed(&magic[..len]) {
        return Ok(file);
    }
    progress.begin(Phase::Unpack, None);
    let failed = |error| tar_error(path, UnpackError::Open(error));
    let mut decoder = Decoder::new(section()?).map_err(failed)?;
    let spill = |source| ImageError::Temporary { path: temporary.to_owned(), source };
    let mut unpacked = tempfile::tempfile_in(temporary).map_err(spill)?;
    each_piece(&mut decoder, path, progress, |piece| unpacked.write_all(piece).map_err(spill))?;
    unpacked.rewind().map_err(spill)?;
    Ok(unpacked)
}

/// Reads to the end, piece by piece.
fn each_piece(
    reader: &mut dyn Read,
    path: &Path,
    progress: &mut dyn Progress,
    mut with: impl FnMut(&[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let len = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(tar_error(path, TarError::Truncated { at, entry: None }.into()));
            }
            Err(error) => return Err(tar_error(path, TarError::Read { at, source: error }.into())),
        };
        with(&buffer[..len])?;
        at += len as u64;
        step(progress, len as u64)?;
    }
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SourceError::Missing { path: path.to_owned() }.into(),
        _ => read_error(path)(source),
    })
}

/// What changes when a file does; its size comes first.
type Stamp = (u64, u64, (i64, i64), (i64, i64));

fn stamp(file: &File, path: &Path) -> Result<Stamp, ImageError> {
    let stat = file.metadata().map_err(read_error(path))?;
    let times = ((stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()));
    Ok((stat.len(), stat.ino(), times.0, times.1))
}

fn unchanged(file: &File, path: &Path, before: Stamp) -> Result<(), ImageError> {
    if stamp(file, path)? == before {
        Ok(())
    } else {
        Err(SourceError::Changed { path: path.to_owned() }.into())
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| SourceError::Read { path, source }.into()
}

fn tar_error(path: &Path, source: UnpackError) -> ImageError {
    match source {
        UnpackError::Cancelled(cancelled) => cancelled.into(),
        source => ImageError::Tar { path: path.to_owned(), source },
    }
}
