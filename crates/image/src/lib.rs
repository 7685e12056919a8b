//! Root file systems: from a directory, a tar or an OCI image to a read-only erofs image.
#![forbid(unsafe_code)]

mod compression;
pub mod digest;
pub mod directory;
pub mod erofs;
pub mod plan;
pub mod progress;
pub mod scratch;
pub mod tar;
pub mod unpack;
