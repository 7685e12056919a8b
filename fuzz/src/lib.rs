//! What the fuzz targets do with their bytes, as plain functions.
//!
//! libFuzzer calls them through `fuzz_targets/`; tests of the crates they are about call the same
//! functions with a fixed set of inputs, so that a plain `cargo test` covers them too. Each function
//! asserts more than the absence of a panic.

pub mod bridge;
pub mod names;
pub mod persist;
pub mod plan9;
