//! The guest folder, read and replaced as a whole.
//!
//! New files are made beside the folder and exchanged with it in one rename,
//! so that whoever looks sees all old files or all new ones; a VM that already
//! runs keeps the files it opened. One lock, held for the whole build, lets
//! concurrent builds follow each other: the later one finds its work done. A
//! build that dies leaves a folder beside ours, which the next one removes.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::manifest::{FileRecord, Manifest, ManifestError};

/// The name of the manifest in the folder.
const MANIFEST: &str = "manifest.json";

/// All names a guest folder may hold. A folder with any other name in it is not ours to replace.
const NAMES: [&str; 6] = ["vmlinux", "kernel", "initrd.img", "rootfs.erofs", "root.img", MANIFEST];

/// Why the guest folder cannot be used or replaced.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There are no guest files yet.
    #[error("there are no guest files in {folder}")]
    Absent {
        /// The folder.
        folder: PathBuf,
    },
    /// The manifest cannot be understood.
    #[error("cannot use the guest files in {folder}")]
    Manifest {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with the manifest.
        #[source]
        source: ManifestError,
    },
    /// A file is missing or has another size than the manifest says.
    #[error("guest file {path} is {found}, but the manifest says {expected} bytes")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found: `missing`, or a size.
        found: String,
        /// The size in the manifest.
        expected: u64,
    },
    /// The folder holds something that is not ours to replace.
    #[error("{folder} holds {name}, which is no guest file, so it is not replaced")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What does not belong there.
        name: String,
    },
    /// The system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried, such as `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Gives an I/O error its operation and object.
fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { operation, path, source }
}

/// A complete set of guest files.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    folder: PathBuf,
    manifest: Manifest,
}

impl GuestFiles {
    /// Opens the guest files in `folder` and checks that all are there with the sizes the
    /// manifest names. Their digests are not checked here: that would cost every start of a VM.
    ///
    /// # Errors
    /// [`FolderError::Absent`] when there is no manifest, [`FolderError::Manifest`] when it
    /// cannot be understood, [`FolderError::Damaged`] when a file is missing or cut short.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let folder = folder.into();
        let path = folder.join(MANIFEST);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(FolderError::Absent { folder });
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let manifest = Manifest::parse(&json)
            .map_err(|source| FolderError::Manifest { folder: folder.clone(), source })?;
        let files = Self { folder, manifest };
        for record in &files.manifest.outputs {
            files.check_size(record)?;
        }
        Ok(files)
    }

    fn check_size(&self, record: &FileRecord) -> Result<(), FolderError> {
        let path = self.folder.join(&record.name);
        let found = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == record.size => return Ok(()),
            Ok(metadata) => format!("{} bytes", metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "missing".into(),
            Err(error) => return Err(failed("examine", &path)(error)),
        };
        Err(FolderError::Damaged { path, found, expected: record.size })
    }

    /// Whether every file still has the digest the manifest names.
    ///
    /// # Errors
    /// [`FolderError::Io`] when a file cannot be read.
    pub fn are_whole(&self) -> Result<bool, FolderError> {
        for record in &self.manifest.outputs {
            let path = self.folder.join(&record.name);
            let found = File::open(&path)
                .and_then(|mut file| FileRecord::read(&record.name, &mut file))
                .map_err(failed("read", &path))?;
            if found != *record {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the files are and what they were made of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ELF kernel, for a direct boot.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The distribution's bzImage, for a boot through firmware.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// The initrd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.img")
    }

    /// The built-in root file system for containers (erofs).
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs.erofs")
    }

    /// The VM's own root, for a boot from persistent memory (erofs).
    #[must_use]
    pub fn root_image(&self) -> PathBuf {
        self.folder.join("root.img")
    }
}

/// The right to replace a guest folder, held until dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    folder: PathBuf,
    _lock: File,
}

impl FolderLock {
    /// Waits for the lock of `folder` and removes what an interrupted build left behind.
    pub(crate) fn acquire(folder: &Path) -> Result<Self, FolderError> {
        // A link to the folder stays a link: what it leads to is replaced.
        let folder = folder
            .canonicalize()
            .or_else(|_| std::path::absolute(folder))
            .map_err(failed("resolve", folder))?;
        let parent = folder.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
        let lock_path = beside(&folder, "lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        let lock = Self { folder, _lock: lock };
        lock.remove_if_there(&lock.staging())?;
        Ok(lock)
    }

    /// Where new files are made; on the same file system as the folder.
    fn staging(&self) -> PathBuf {
        beside(&self.folder, "new")
    }

    /// Begins a new set of files.
    ///
    /// # Errors
    /// [`FolderError::Foreign`] when the folder is there and is not one of ours.
    pub(crate) fn stage(&self) -> Result<Staging<'_>, FolderError> {
        if let Some(name) = foreign_name(&self.folder)? {
            return Err(FolderError::Foreign { folder: self.folder.clone(), name });
        }
        let staging = self.staging();
        std::fs::create_dir(&staging).map_err(failed("create", &staging))?;
        Ok(Staging { lock: self, path: staging, records: Vec::new() })
    }

    fn remove_if_there(&self, path: &Path) -> Result<(), FolderError> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A new set of files, not yet in place. Dropped before its time, it is gone.
#[derive(Debug)]
pub(crate) struct Staging<'a> {
    lock: &'a FolderLock,
    path: PathBuf,
    records: Vec<FileRecord>,
}

impl Staging<'_> {
    /// Makes one file: `fill` gets it, empty, to write to. Its digest is remembered.
    pub(crate) fn create<E: From<FolderError>>(
        &mut self,
        name: &'static str,
        fill: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<FileRecord, E> {
        let path = self.path.join(name);
        let mut file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("create", &path))?;
        fill(&mut file)?;
        file.sync_all().map_err(failed("sync", &path))?;
        file.rewind().map_err(failed("read", &path))?;
        let record = FileRecord::read(name, &mut file).map_err(failed("read", &path))?;
        self.records.push(record.clone());
        Ok(record)
    }

    /// Writes the manifest and puts the whole set in the folder's place.
    pub(crate) fn publish(mut self, mut manifest: Manifest) -> Result<GuestFiles, FolderError> {
        manifest.outputs = std::mem::take(&mut self.records);
        let manifest_path = self.path.join(MANIFEST);
        File::create_new(&manifest_path)
            .and_then(|mut file| {
                file.write_all(manifest.to_json().as_bytes())?;
                file.sync_all()
            })
            .map_err(failed("write", &manifest_path))?;
        sync_directory(&self.path)?;
        let folder = &self.lock.folder;
        if folder.exists() {
            let exchange = RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(CWD, &self.path, CWD, folder, exchange)
                .map_err(|errno| failed("exchange", folder)(errno.into()))?;
        } else {
            std::fs::rename(&self.path, folder).map_err(failed("create", folder))?;
        }
        let parent = folder.parent().unwrap_or(Path::new("/"));
        sync_directory(parent)?;
        Ok(GuestFiles { folder: folder.clone(), manifest })
    }
}

impl Drop for Staging<'_> {
    /// Removes what is beside the folder: the unfinished set, or the old one after an exchange.
    fn drop(&mut self) {
        // What cannot be removed now, the next build removes.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The first name in the folder that is not one of ours; nothing if the folder is not there.
fn foreign_name(folder: &Path) -> Result<Option<String>, FolderError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed("list", folder))?.file_name();
        if !NAMES.iter().any(|known| name == *known) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Makes the names in a directory last.
fn sync_directory(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))
}

/// `.guest.SUFFIX` beside `.../guest`.
fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.{suffix}"))
}
