//! What the host plugs in becomes something to mount.
//!
//! One file per kind of thing; [`mount`] has the rules all of them share. Everything here blocks
//! and is called on a thread that may.

pub mod disk;
pub mod mount;
mod node;
pub mod overlay;
pub mod pipe;
pub mod plan9;
pub mod pmem;
pub mod resources;
pub mod scsi;
mod superblock;
pub mod virtiofs;
