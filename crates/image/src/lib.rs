//! Root file systems: from a directory, a tar or an OCI image to a read-only erofs image.
#![forbid(unsafe_code)]

pub mod erofs;
