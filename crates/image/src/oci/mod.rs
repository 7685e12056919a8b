//! Images in the OCI layout, as a directory or in a tar, and archives of `docker save`.
//!
//! From the index the way leads to one manifest (by name, when one is asked for, and by
//! platform), from there to the configuration and the layers. Everything on the way is named by
//! its digest, and read no further than its size says; digests are checked as the bytes stream
//! by, layers included, so that nothing is read twice.

mod blobs;
mod docker;
mod layout;

use std::io::{self, Read};
use std::path::PathBuf;

use crate::compression::Decoder;
use crate::config::ImageConfig;
use crate::digest::{Digest, HashingReader};
use crate::erofs::{Tree, Writer};
use crate::plan::{Plan, Whiteouts};
use crate::progress::{Cancelled, Phase, Progress};
use crate::unpack::{UnpackError, unpack};

pub(crate) use blobs::{Blobs, Section, is_image};

use blobs::Shape;

/// Manifests and configurations are text: more than this is none.
const DOCUMENT_MAX: u64 = 8 << 20;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file of the layout is missing or cannot be read.
    #[error("cannot read {name:?} of the image in {path:?}")]
    Read {
        /// The layout or archive.
        path: PathBuf,
        /// Which file in it.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A document is malformed.
    #[error("{name:?} of the image in {path:?} is malformed: {reason}")]
    Document {
        /// The layout or archive.
        path: PathBuf,
        /// Which file in it.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A digest is of another algorithm than SHA-256.
    #[error("the image in {path:?} names a blob by {digest:?}, which is no SHA-256 digest")]
    Algorithm {
        /// The layout or archive.
        path: PathBuf,
        /// The digest as it stands there.
        digest: String,
    },
    /// What was read is not what its name says.
    #[error("{what} in {path:?} has the digest {found}, not {wanted}")]
    Digest {
        /// The layout or archive.
        path: PathBuf,
        /// What it is, and its file: `layer 2 of 3 (blobs/sha256/...)`.
        what: String,
        /// What was promised.
        wanted: Digest,
        /// What there is.
        found: Digest,
    },
    /// A blob is shorter than its descriptor says: it was cut off.
    #[error("{what} in {path:?} has {found} bytes, not {wanted}")]
    Size {
        /// The layout or archive.
        path: PathBuf,
        /// What it is, and its file.
        what: String,
        /// What was promised.
        wanted: u64,
        /// What there is.
        found: u64,
    },
    /// A layer could not be laid into the image.
    #[error("cannot unpack {what} in {path:?}")]
    Layer {
        /// The layout or archive.
        path: PathBuf,
        /// Which layer, and its file.
        what: String,
        /// Why not.
        source: UnpackError,
    },
    /// No image of that name.
    #[error("there is no image {reference:?} in {path:?}, only {}", listed(names))]
    Reference {
        /// The layout or archive.
        path: PathBuf,
        /// The name asked for.
        reference: String,
        /// The names there are.
        names: Vec<String>,
    },
    /// Several images and no name given.
    #[error("there are several images in {path:?}: {}", listed(names))]
    Ambiguous {
        /// The layout or archive.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// No image for this kind of machine.
    #[error("the image in {path:?} is not for {wanted}, only for {}", listed(found))]
    Platform {
        /// The layout or archive.
        path: PathBuf,
        /// What this machine is.
        wanted: String,
        /// What the image is for.
        found: Vec<String>,
    },
    /// A layer of a kind that cannot be unpacked, such as an encrypted one.
    #[error("{what} in {path:?} is of the kind {media_type:?}, which cannot be unpacked")]
    MediaType {
        /// The layout or archive.
        path: PathBuf,
        /// Which layer.
        what: String,
        /// Its media type.
        media_type: String,
    },
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "nothing with a name".to_owned() } else { names.join(", ") }
}

/// One layer, from the bottom up.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Its file in the layout.
    name: String,
    check: Check,
    /// Size of the file when it is known beforehand.
    size: Option<u64>,
}

/// What a layer's bytes are compared with.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// The digest of the file as it is stored.
    Stored(Digest),
    /// The digest of the tar in it. `docker save` knows no other.
    Unpacked(Digest),
}

/// An image found: all about it but the contents of its layers.
#[derive(Debug)]
pub(crate) struct Found {
    /// Names everything in the image: the digest of its manifest (docker: of its configuration).
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    layers: Vec<Layer>,
}

/// Finds the image called `reference`, or the only one.
pub(crate) fn find(blobs: &Blobs, reference: Option<&str>) -> Result<Found, OciError> {
    match blobs.shape() {
        Shape::Oci => layout::find(blobs, reference),
        Shape::Docker => docker::find(blobs, reference),
    }
}

/// Lays all layers of `found` into one tree, their contents into `writer`.
pub(crate) fn copy(
    blobs: &Blobs,
    found: &Found,
    writer: &mut Writer,
    progress: &mut dyn Progress,
) -> Result<Tree, OciError> {
    let count = found.layers.len();
    let mut plan = Plan::new(Whiteouts::Apply);
    for (index, layer) in found.layers.iter().enumerate() {
        let number = index + 1;
        progress.begin(Phase::Layer { number, count }, layer.size);
        plan.next_layer();
        let what = format!("layer {number} of {count} ({})", layer.name);
        copy_layer(blobs, layer, &what, &mut plan, writer, progress)?;
    }
    Ok(plan.into_tree())
}

fn copy_layer(
    blobs: &Blobs,
    layer: &Layer,
    what: &str,
    plan: &mut Plan,
    writer: &mut Writer,
    progress: &mut dyn Progress,
) -> Result<(), OciError> {
    let blob = blobs.open(&layer.name)?;
    let found = blob.len();
    if let Some(wanted) = layer.size
        && wanted != found
    {
        let path = blobs.path().to_owned();
        return Err(OciError::Size { path, what: what.into(), wanted, found });
    }
    let failed = |source| match source {
        UnpackError::Cancelled(cancelled) => OciError::Cancelled(cancelled),
        source => {
            let path = blobs.path().to_owned();
            OciError::Layer { path, what: what.into(), source }
        }
    };
    let (wanted, found, outcome) = match layer.check {
        Check::Stored(wanted) => {
            let (found, outcome) = unpack_hashed(blob, plan, writer, progress);
            (wanted, found, outcome)
        }
        Check::Unpacked(wanted) => {
            let tar = Decoder::new(blob).map_err(|error| failed(UnpackError::Open(error)))?;
            let (found, outcome) = unpack_hashed(tar, plan, writer, progress);
            (wanted, found, outcome)
        }
    };
    // A damaged layer may fail as a tar before its digest is known: then the digest is the better
    // explanation. What failed for another reason has been read only in part.
    match outcome {
        Err(source @ (UnpackError::Cancelled(_) | UnpackError::Erofs(_))) => Err(failed(source)),
        Ok(()) | Err(_) if wanted != found => {
            let path = blobs.path().to_owned();
            Err(OciError::Digest { path, what: what.into(), wanted, found })
        }
        outcome => outcome.map_err(failed),
    }
}

/// Unpacks, and gives the digest of all that `reader` has, even when unpacking fails.
fn unpack_hashed(
    reader: impl Read,
    plan: &mut Plan,
    writer: &mut Writer,
    progress: &mut dyn Progress,
) -> (Digest, Result<(), UnpackError>) {
    let mut reader = HashingReader::new(reader);
    let outcome = unpack(&mut reader, plan, writer, progress);
    if let Err(UnpackError::Open(_) | UnpackError::Tar(_) | UnpackError::Plan(_)) = outcome {
        // If this fails too, the digest is wrong, and that is said.
        let _ = io::copy(&mut reader, &mut io::sink());
    }
    (reader.digest(), outcome)
}
