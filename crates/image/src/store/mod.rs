//! The store of images that were made, by the digest of what they were made from.
//!
//! ```text
//! images/KEY/{rootfs.erofs, image.json}    complete images, never changed
//! building/KEY/                            one being made, under a lock on the folder
//! known/...                                which image a file or directory gave the last time
//! ```
//!
//! An image is made in `building/KEY` by whoever holds the flock on that folder; the others wait.
//! When all of it is on disk, the folder is renamed to `images/KEY`, lock and all: an image is
//! there whole, or not at all. A folder in `building` that nobody has locked is left over from a
//! process that died, and is removed by the next one that makes something.
//!
//! An image in use is kept from removal by a shared flock on `rootfs.erofs`, which goes along
//! with the descriptor to whoever it is passed on to, and ends with its last copy.

mod known;
mod slot;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::build::{self, Input};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::progress::{Phase, Progress};
use crate::source::{Source, SourceError, SourceKind};
use slot::{Claim, Slot};

const IMAGES: &str = "images";
const BUILDING: &str = "building";
const ROOTFS: &str = "rootfs.erofs";
const FACTS: &str = "image.json";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something about a file of the store failed.
    #[error("cannot {action} {path:?} in the image store")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The image is in use.
    #[error("the image {key} is in use")]
    InUse {
        /// Which.
        key: Digest,
    },
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// An erofs image, ready to be a disk.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Names what it was made from: of an OCI image the manifest's digest, of a tar the file's,
    /// of a directory one over its metadata.
    pub digest: Digest,
    /// The image's name in the store; `None` when it is not from there.
    pub key: Option<Digest>,
    /// How to run it, as far as the source says.
    pub config: ImageConfig,
    /// Size in bytes, a multiple of 2 MiB when it is from the store.
    pub size: u64,
    /// True when nothing had to be made.
    pub cached: bool,
    file: File,
}

impl Image {
    /// The image, open for reading. As long as this descriptor or a copy of it is open, wherever
    /// it was passed on to, the store does not remove the image.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives up everything but the open image.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

/// What `image.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    digest: Digest,
    config: ImageConfig,
    size: u64,
}

/// A folder of images. Any number of processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store in the folder `root`, which is made when it is not there, for its owner
    /// alone: images may hold secrets.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let root = root.into();
        for folder in [IMAGES, BUILDING, known::FOLDER] {
            let path = root.join(folder);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreError::io("create", &path))?;
        }
        Ok(Self { root })
    }

    /// Makes the image of `source`, unless the store has it. Blocks; not for async threads.
    ///
    /// # Errors
    /// Any [`ImageError`]. Nothing half done is left.
    pub fn prepare(
        &self,
        source: &Source,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        if source.kind() == SourceKind::Erofs {
            return prepared(source.path());
        }
        if let Some(image) = self.recall(source)? {
            return Ok(image);
        }
        let input = Input::examine(source, &self.root, progress)?;
        let image = self.get_or_build(source, input, progress)?;
        self.remember(source, &image)?;
        Ok(image)
    }

    /// Removes an image from the store. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Io`].
    pub fn remove(&self, key: Digest) -> Result<(), ImageError> {
        let folder = self.image_folder(key);
        let rootfs = folder.join(ROOTFS);
        match File::open(&rootfs) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| StoreError::InUse { key })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("open", &rootfs)(error).into()),
        }
        self.take_away(&folder)?;
        Ok(())
    }

    fn get_or_build(
        &self,
        source: &Source,
        input: Input,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let key = input.key();
        let mut waiting = false;
        loop {
            if let Some(image) = self.find(key, true)? {
                return Ok(image);
            }
            match Slot::claim(&self.root.join(BUILDING), key)? {
                Claim::Mine(slot) => {
                    // It may have been finished between looking and locking.
                    if let Some(image) = self.find(key, true)? {
                        return Ok(image);
                    }
                    return self.build(source, input, slot, progress);
                }
                Claim::Taken => {
                    if !waiting {
                        progress.begin(Phase::Wait, None);
                        waiting = true;
                    }
                    crate::progress::step(progress, 0)?;
                    std::thread::sleep(slot::POLL);
                }
            }
        }
    }

    fn build(
        &self,
        source: &Source,
        input: Input,
        slot: Slot,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        slot::sweep(&self.root.join(BUILDING));
        let (key, digest, config) = (input.key(), input.digest(), input.config());
        let rootfs = slot.path().join(ROOTFS);
        let file = slot.create(ROOTFS)?;
        let (file, written) = build::build(source, input, file, progress)?;
        let size = written.size;
        let facts = serde_json::to_vec(&Facts { digest, config, size })
            .map_err(|error| StoreError::io("write", &rootfs)(error.into()))?;
        slot.write(FACTS, &facts)?;
        file.sync_all().map_err(StoreError::io("sync", &rootfs))?;
        let folder = self.image_folder(key);
        // Only a damaged one can be there, or it would have been found.
        self.take_away(&folder)?;
        slot.commit(&folder)?;
        self.find(key, false)?.ok_or_else(|| {
            let error = io::Error::from(io::ErrorKind::NotFound);
            StoreError::io("find", &folder)(error).into()
        })
    }

    /// The image `key`, if the store has it undamaged.
    fn find(&self, key: Digest, cached: bool) -> Result<Option<Image>, ImageError> {
        let folder = self.image_folder(key);
        let Ok(text) = fs::read(folder.join(FACTS)) else { return Ok(None) };
        let Ok(facts) = serde_json::from_slice::<Facts>(&text) else { return Ok(None) };
        let path = folder.join(ROOTFS);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", &path)(error).into()),
        };
        flock(&file, FlockOperation::LockShared)
            .map_err(|error| StoreError::io("lock", &path)(error.into()))?;
        let stat = file.metadata().map_err(StoreError::io("look at", &path))?;
        // Removed while we waited for the lock, or cut short by a crash of the host.
        if stat.nlink() == 0 || stat.len() != facts.size {
            return Ok(None);
        }
        let Facts { digest, config, size } = facts;
        Ok(Some(Image { path, digest, key: Some(key), config, size, cached, file }))
    }

    /// Takes a folder of the store away in one step, then deletes it.
    fn take_away(&self, folder: &Path) -> Result<(), StoreError> {
        if !folder.exists() {
            return Ok(());
        }
        let building = self.root.join(BUILDING);
        let grave = tempfile::tempdir_in(&building).map_err(StoreError::io("use", &building))?;
        match fs::rename(folder, grave.path().join("image")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", folder)(error)),
        }
    }

    fn image_folder(&self, key: Digest) -> PathBuf {
        self.root.join(IMAGES).join(key.hex())
    }
}

/// An image that is not from the store.
fn prepared(path: &Path) -> Result<Image, ImageError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SourceError::Missing { path: path.to_owned() },
        _ => SourceError::Read { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    // The first block has the superblock, and in it the UUID, which names the content.
    let mut head = vec![0; crate::erofs::BLOCK_SIZE];
    let read = std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0);
    if read.is_err() || !crate::erofs::is_image(&head) {
        let found = "not an erofs image".to_owned();
        return Err(SourceError::Unknown { path: path.to_owned(), found }.into());
    }
    Ok(Image {
        path: path.to_owned(),
        digest: Digest::of(&head),
        key: None,
        config: ImageConfig::default(),
        size,
        cached: true,
        file,
    })
}
