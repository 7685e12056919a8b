//! Sessions between a host and a guest: the rules of the host's end, those of the
//! guest's end, streams, and what survives the loss of a connection.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod exits;
mod fake;
mod guest_rules;
mod host_calls;
mod host_handles;
mod resume;
mod streams;
