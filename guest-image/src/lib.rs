//! How the guest's files are made.
//!
//! A utility VM boots from a handful of files: an ELF kernel with a PVH entry,
//! the distribution's own kernel for firmware boot, an initrd that holds the
//! agent and the modules it needs, a built-in root file system for containers
//! without an image, and a root disk for machines that boot from persistent
//! memory. This crate makes all of them from what any distribution ships (a
//! `vmlinuz`, its modules, a static busybox) and from our own agent, and
//! nothing else: no compiler, no root, no loop device, no tool of the host.
//!
//! Two promises shape it. The same inputs give the same bytes, so a file's
//! digest says what is in it; and the folder is replaced as a whole, so a
//! machine that starts meanwhile sees either the old files or the new ones.
//!
//! ```text
//! vmlinuz ──► kernel ──► vmlinux          (kernel, payload)
//! modules ──► modules ─┬► initrd.img      (initrd, cpio)
//! agent  ──────────────┴► root.img        (tree)
//! busybox ────────────┴─► rootfs.erofs    (busybox)
//!                      └► manifest.json   (manifest), folder replaced (folder)
//! ```

#![forbid(unsafe_code)]

mod assemble;
mod busybox;
pub mod cpio;
mod folder;
mod initrd;
mod kernel;
mod manifest;
mod modules;
mod payload;
mod signature;
mod tree;

pub use assemble::{Built, GuestRecipe, Step, build};
pub use folder::{FolderError, GuestFiles};
pub use initrd::{BOOT_MODULES, ON_DEMAND_MODULES};
pub use kernel::KernelError;
pub use manifest::{FileRecord, KernelRecord, Manifest, ManifestError, ModuleRecord, SCHEMA};
pub use modules::ModuleError;
pub use payload::{Compression, PayloadError};

use std::path::PathBuf;

/// Why the guest's files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An input could not be read.
    #[error("cannot read the {role} {path}")]
    Input {
        /// What the file is for: `kernel`, `agent`, `busybox`.
        role: &'static str,
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The agent or busybox is not a static x86-64 executable.
    #[error("the {role} {path} {fault}")]
    NotStatic {
        /// What the file is for: `agent`, `busybox`.
        role: &'static str,
        /// The file as it was named.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The kernel is damaged or of a kind we cannot boot.
    #[error("cannot use the kernel {path}")]
    Kernel {
        /// The kernel as it was named.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The modules are missing, incomplete or of another kernel.
    #[error("cannot use the modules in {path}")]
    Modules {
        /// The modules directory as it was named.
        path: PathBuf,
        /// What is wrong with them.
        #[source]
        source: ModuleError,
    },
    /// A file system image could not be written.
    #[error("cannot make {output}")]
    Image {
        /// The output, such as `rootfs.erofs`.
        output: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder could not be read or replaced.
    #[error(transparent)]
    Folder(#[from] FolderError),
}
