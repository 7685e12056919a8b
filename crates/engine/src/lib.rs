//! A sandbox: a utility VM, its image and its life.

#![forbid(unsafe_code)]

pub mod oci;
pub mod root;
pub mod run_dir;
