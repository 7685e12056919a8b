//! Archives of `docker save` from before it wrote the OCI layout as well.
//!
//! `manifest.json` lists images; each names its configuration and its layers by path. Nothing
//! says the digest of a layer's file, but the configuration has those of the tars in them.

use serde::Deserialize;

use super::blobs::Blobs;
use super::{Check, Found, Layer, OciError, layout};
use crate::config::ImageConfig;

const MANIFEST: &str = "manifest.json";

/// One image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Image {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// Finds the image tagged `reference`, or the only one.
pub(super) fn find(blobs: &Blobs, reference: Option<&str>) -> Result<Found, OciError> {
    let (text, _) = blobs.document(MANIFEST)?;
    let images: Vec<Image> =
        serde_json::from_slice(&text).map_err(|error| blobs.malformed(MANIFEST, error))?;
    let image = pick(blobs, &images, reference)?;
    let (text, digest) = blobs.document(&image.config)?;
    let configuration = layout::configuration(blobs, &image.config, &text)?;
    let diff_ids = configuration.rootfs().diff_ids();
    if diff_ids.len() != image.layers.len() {
        let reason =
            format!("{} layers in {MANIFEST}, {} here", image.layers.len(), diff_ids.len());
        return Err(blobs.malformed(&image.config, reason));
    }
    let layers = std::iter::zip(&image.layers, diff_ids)
        .map(|(name, diff_id)| {
            let digest = diff_id.parse().map_err(|_| OciError::Algorithm {
                path: blobs.path().to_owned(),
                digest: diff_id.clone(),
            })?;
            Ok(Layer { name: name.clone(), check: Check::Unpacked(digest), size: None })
        })
        .collect::<Result<_, OciError>>()?;
    Ok(Found { digest, config: ImageConfig::from(&configuration), layers })
}

fn pick<'a>(
    blobs: &Blobs,
    images: &'a [Image],
    reference: Option<&str>,
) -> Result<&'a Image, OciError> {
    let path = || blobs.path().to_owned();
    let names = || images.iter().flat_map(Image::tags).cloned().collect();
    match (reference, images) {
        (None, [image]) => Ok(image),
        (None, []) => Err(blobs.malformed(MANIFEST, "it lists no image")),
        (None, _) => Err(OciError::Ambiguous { path: path(), names: names() }),
        (Some(reference), images) => images
            .iter()
            .find(|image| image.tags().iter().any(|tag| tag == reference))
            .ok_or_else(|| OciError::Reference {
                path: path(),
                reference: reference.to_owned(),
                names: names(),
            }),
    }
}
