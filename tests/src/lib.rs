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

/// Waits until something is so.
///
/// # Panics
/// It does not come to be within half a minute.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
