//! What the tests of the whole share: a place of their own, the command under test,
//! and a look at the host before and after.
//!
//! The command and the guest files are those `make setup` made; a test that cannot
//! find them fails and says so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod detached;
pub mod host;
pub mod lab;
pub mod net;
pub mod place;
pub mod trace;

pub use host::Host;
pub use place::Place;
