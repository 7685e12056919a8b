//! Root file systems: from a directory, a tar or an OCI image to a read-only erofs image.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use coracle_image::{Source, Store};
//! let store = Store::open("/var/lib/coracle/images")?;
//! let source = Source::detect("debian.tar.zst".as_ref())?;
//! let image = store.prepare(&source, &mut ())?;
//! println!("{} ({})", image.path.display(), image.digest);
//! # Ok(()) }
//! ```
//!
//! The way of a source: [`source`] finds out what it is; `build` finds the digest that names its
//! content, and the [`store`] whether there is an image of that name. If not, the source is read
//! once more, now streaming: a [`directory`] file by file, a [`tar`] entry by entry through the
//! [`plan`] that decides what goes where, an [`oci`] image layer by layer likewise. Contents go
//! straight into the image ([`erofs`]), and when all have, the tree is written behind them.
//!
//! Deliberately absent: extraction to the host (no root is needed, no device node is made, no
//! hostile name meets the host's file system), compression (see [`erofs`]), and changing a source.
#![forbid(unsafe_code)]

mod build;
mod compression;
pub mod config;
pub mod digest;
pub mod directory;
pub mod erofs;
mod error;
pub mod oci;
pub mod plan;
pub mod progress;
pub mod scratch;
pub mod source;
pub mod store;
pub mod tar;
pub mod unpack;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::ImageError;
pub use progress::{Phase, Progress};
pub use source::{Source, SourceKind};
pub use store::{Image, Store};
