//! From where a root file system comes to an image that can be a disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use coracle_image::{ImageConfig, ImageError, Source, Store};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::progress::{Channelled, OnProgress};
use crate::root::Root;
use crate::spec::RootFs;

/// A root file system as an erofs image, and what it says about how to run it.
#[derive(Debug)]
pub struct RootImage {
    /// Where it is.
    pub path: PathBuf,
    /// The same, open: as long as it is, the store keeps the image.
    pub file: File,
    /// How to run it, as far as the image says.
    pub config: ImageConfig,
}

/// Makes the image, or finds it made.
///
/// # Errors
/// There are no guest files, or the source cannot be converted.
pub async fn prepare(
    root: &Root,
    rootfs: &RootFs,
    cancel: &CancellationToken,
    on_progress: OnProgress,
) -> Result<RootImage, Error> {
    let path = match rootfs {
        RootFs::BuiltIn => {
            let path = root.guest().join("rootfs.erofs");
            if !path.exists() {
                return Err(Error::NoGuest { path });
            }
            let file = open(&path, false)?;
            return Ok(RootImage { path, file, config: ImageConfig::default() });
        }
        RootFs::At(path) => path.clone(),
    };
    let images = root.images();
    let mut progress = Channelled::new(on_progress, cancel.clone());
    let at = path.clone();
    let prepare = move || -> Result<RootImage, ImageError> {
        let source = Source::detect(&at)?;
        let image = Store::open(images)?.prepare(&source, &mut progress)?;
        let (path, config) = (image.path.clone(), image.config.clone());
        Ok(RootImage { path, config, file: image.into_file() })
    };
    let prepared = tokio::task::spawn_blocking(prepare).await;
    // Converting images does not panic; if it did, there is nothing to go on with.
    let prepared = prepared.expect("the conversion ran to its end");
    prepared.map_err(|source| Error::RootFs { path, source: Box::new(source) })
}

/// Opens a file that becomes a disk.
pub(crate) fn open(path: &Path, write: bool) -> Result<File, Error> {
    let opened = File::options().read(true).write(write).open(path);
    opened.map_err(|source| Error::Open { path: path.to_owned(), source })
}
