//! QMP, the language QEMU is controlled in: a client of our own, small and typed.
//!
//! ```text
//!   Client::run(command) --request--> connection task --line, descriptor--> QEMU
//!        ^                              |      |
//!        +------------- reply by id ----+      +-- events --> every subscriber
//! ```
//! One task owns the socket, so no lock is held across a wait and a caller that gives up leaves
//! nothing behind: its answer, should it still come, has no one waiting under its id. A line from
//! the other end is bounded, since a monitor taken over by its guest must not exhaust us.

mod client;
pub mod command;
mod error;
mod message;

pub use client::Client;
pub use error::QmpError;
pub use message::{Event, Incoming, MAX_LINE, parse};
