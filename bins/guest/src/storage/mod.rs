//! What the host plugs in becomes something to mount.
//!
//! One file per kind of thing; [`mount`] has the rules all of them share. Everything here blocks
//! and is called on a thread that may.

pub mod disk;
pub mod mount;
pub mod overlay;
pub mod pipe;
pub mod plan9;
pub mod pmem;
pub mod resources;
mod superblock;
pub mod virtiofs;
