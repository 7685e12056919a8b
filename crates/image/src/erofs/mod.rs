//! Makes read-only erofs images: contents are streamed in, the tree follows.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use coracle_image::erofs::Builder;
//! let mut image = Builder::new(std::fs::File::create_new("root.erofs")?);
//! image.file("/bin/busybox", 0o755, &mut std::fs::File::open("/bin/busybox")?)?;
//! image.symlink("/bin/sh", "busybox")?;
//! image.directory("/proc", 0o555)?;
//! image.finish()?;
//! # Ok(()) }
//! ```
//!
//! [`Builder`] is for trees written down in code; [`Writer`] and [`Tree`] are what it stands on,
//! for trees that come from elsewhere. The format is written here because no crate we could keep
//! writes it: `erofs-rs` 0.3 only reads, and `mkfs.erofs` of Debian 12 takes neither a tar nor a
//! stream. What is written is uncompressed: on a local disk that is the fastest to make and to
//! read, and pages of it can be shared.

mod builder;
mod directory;
mod finish;
mod format;
mod tree;
mod writer;

pub use builder::{Builder, BuilderError};
pub use format::{BLOCK as BLOCK_SIZE, HEAD, is_image, supports_xattr};
pub use tree::{
    DeviceNumber, Kind, Metadata, NAME_MAX, Name, NameError, Node, NodeId, Timestamp, Tree,
    TreeError, Xattrs,
};
pub use writer::{Content, ErofsError, FileWriter, TAILS_MAX, Writer, Written};
