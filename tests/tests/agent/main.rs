//! What the agent promises, on real virtual machines: confinement, processes, streams, storage.
//!
//! Each test boots a VM of its own with the guest files `make setup` made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod confinement;
mod processes;
mod storage;
mod support;
mod users;
