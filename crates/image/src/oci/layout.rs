//! The way from `index.json` to one image: by name, then by platform.

use std::collections::BTreeSet;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};

use super::blobs::Blobs;
use super::{Check, Found, Layer, OciError};
use crate::config::ImageConfig;
use crate::digest::Digest;

/// How deep indexes may be nested.
const DEPTH_MAX: usize = 4;

/// The annotation that names an image within a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd writes besides: the full name.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Media types of layers, less how they are compressed.
const LAYER_KINDS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// Finds the image called `reference`, or the only one.
pub(super) fn find(blobs: &Blobs, reference: Option<&str>) -> Result<Found, OciError> {
    let (text, _) = blobs.document("index.json")?;
    let index: ImageIndex =
        serde_json::from_slice(&text).map_err(|error| blobs.malformed("index.json", error))?;
    let named = by_name(blobs, index.manifests(), reference)?;
    let mut candidates = Vec::new();
    for descriptor in named {
        collect(blobs, descriptor, 0, &mut candidates)?;
    }
    let descriptor = by_platform(blobs, &candidates)?;
    image(blobs, descriptor)
}

/// Those entries of the index that are meant.
fn by_name<'a>(
    blobs: &Blobs,
    entries: &'a [Descriptor],
    reference: Option<&str>,
) -> Result<Vec<&'a Descriptor>, OciError> {
    let names = || entries.iter().filter_map(ref_name).collect::<Vec<_>>();
    match reference {
        None => {
            // Several manifests of one name, or of none, are one image for several platforms;
            // one manifest of several names is one image.
            let names: BTreeSet<String> = names().into_iter().collect();
            let digests: BTreeSet<String> =
                entries.iter().map(|entry| entry.digest().to_string()).collect();
            if names.len() > 1 && digests.len() > 1 {
                let names = names.into_iter().collect();
                return Err(OciError::Ambiguous { path: blobs.path().to_owned(), names });
            }
            Ok(entries.iter().collect())
        }
        Some(reference) => {
            let found: Vec<_> =
                entries.iter().filter(|entry| is_called(entry, reference)).collect();
            if found.is_empty() {
                return Err(OciError::Reference {
                    path: blobs.path().to_owned(),
                    reference: reference.to_owned(),
                    names: names(),
                });
            }
            Ok(found)
        }
    }
}

fn annotation(descriptor: &Descriptor, key: &str) -> Option<String> {
    descriptor.annotations().as_ref()?.get(key).cloned()
}

fn ref_name(descriptor: &Descriptor) -> Option<String> {
    annotation(descriptor, REF_NAME).or_else(|| annotation(descriptor, IMAGE_NAME))
}

fn is_called(descriptor: &Descriptor, reference: &str) -> bool {
    [REF_NAME, IMAGE_NAME]
        .iter()
        .any(|key| annotation(descriptor, key).is_some_and(|name| name == reference))
        || descriptor.digest().to_string() == reference
}

/// All manifests a descriptor leads to, through nested indexes.
fn collect(
    blobs: &Blobs,
    descriptor: &Descriptor,
    depth: usize,
    found: &mut Vec<Descriptor>,
) -> Result<(), OciError> {
    let media_type = descriptor.media_type().to_string();
    if !media_type.ends_with(".image.index.v1+json")
        && !media_type.ends_with(".manifest.list.v2+json")
    {
        found.push(descriptor.clone());
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(blobs.malformed("index.json", "indexes are nested more than 4 deep"));
    }
    let (name, text) = document(blobs, descriptor, "index")?;
    let index: ImageIndex =
        serde_json::from_slice(&text).map_err(|error| blobs.malformed(&name, error))?;
    index.manifests().iter().try_for_each(|inner| collect(blobs, inner, depth + 1, found))
}

/// The manifest for this kind of machine. One that does not say what it is for comes last: its
/// configuration will say.
fn by_platform<'a>(
    blobs: &Blobs,
    candidates: &'a [Descriptor],
) -> Result<&'a Descriptor, OciError> {
    let said = |descriptor: &Descriptor| {
        descriptor
            .platform()
            .as_ref()
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
    };
    let wanted = platform();
    candidates
        .iter()
        .find(|candidate| said(candidate).is_some_and(|said| said == wanted))
        .or_else(|| candidates.iter().find(|candidate| said(candidate).is_none()))
        .ok_or_else(|| OciError::Platform {
            path: blobs.path().to_owned(),
            wanted,
            found: candidates.iter().filter_map(said).collect(),
        })
}

/// What this machine is in the words of OCI, `linux/amd64` for instance.
pub(super) fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The image of a manifest.
fn image(blobs: &Blobs, descriptor: &Descriptor) -> Result<Found, OciError> {
    let (name, text) = document(blobs, descriptor, "manifest")?;
    let manifest: ImageManifest =
        serde_json::from_slice(&text).map_err(|error| blobs.malformed(&name, error))?;
    let (name, text) = document(blobs, manifest.config(), "configuration")?;
    let config = configuration(blobs, &name, &text)?;
    let count = manifest.layers().len();
    let layers = manifest
        .layers()
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let what = format!("layer {} of {count}", index + 1);
            check_layer_kind(blobs, &what, layer.media_type().as_ref())?;
            let digest = digest(blobs, layer)?;
            let name = blob_name(digest);
            Ok(Layer { name, check: Check::Stored(digest), size: Some(layer.size()) })
        })
        .collect::<Result<_, OciError>>()?;
    let config = ImageConfig::from(&config);
    Ok(Found { digest: digest(blobs, descriptor)?, config, layers })
}

/// A configuration, which must be for this kind of machine.
pub(super) fn configuration(
    blobs: &Blobs,
    name: &str,
    text: &[u8],
) -> Result<ImageConfiguration, OciError> {
    let config: ImageConfiguration =
        serde_json::from_slice(text).map_err(|error| blobs.malformed(name, error))?;
    let found = format!("{}/{}", config.os(), config.architecture());
    let wanted = platform();
    if found == wanted {
        return Ok(config);
    }
    Err(OciError::Platform { path: blobs.path().to_owned(), wanted, found: vec![found] })
}

/// Layers are tars, however compressed: that is seen from their bytes. Other kinds, such as
/// encrypted ones, have names of their own.
fn check_layer_kind(blobs: &Blobs, what: &str, media_type: &str) -> Result<(), OciError> {
    let kind = media_type.trim_end_matches("+gzip").trim_end_matches("+zstd");
    let kind = kind.trim_end_matches(".gzip").trim_end_matches(".zstd");
    if LAYER_KINDS.contains(&kind) {
        return Ok(());
    }
    Err(OciError::MediaType {
        path: blobs.path().to_owned(),
        what: what.to_owned(),
        media_type: media_type.to_owned(),
    })
}

/// A document named by a descriptor, checked.
fn document(
    blobs: &Blobs,
    descriptor: &Descriptor,
    what: &str,
) -> Result<(String, Vec<u8>), OciError> {
    let wanted = digest(blobs, descriptor)?;
    let name = blob_name(wanted);
    let (text, found) = blobs.document(&name)?;
    let path = || blobs.path().to_owned();
    let what = || format!("{what} ({name})");
    if text.len() as u64 != descriptor.size() {
        let (wanted, found) = (descriptor.size(), text.len() as u64);
        return Err(OciError::Size { path: path(), what: what(), wanted, found });
    }
    if found != wanted {
        return Err(OciError::Digest { path: path(), what: what(), wanted, found });
    }
    Ok((name, text))
}

fn digest(blobs: &Blobs, descriptor: &Descriptor) -> Result<Digest, OciError> {
    let digest = descriptor.digest().to_string();
    digest.parse().map_err(|_| OciError::Algorithm { path: blobs.path().to_owned(), digest })
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
