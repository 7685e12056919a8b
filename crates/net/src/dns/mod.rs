//! The name server of a private network, at the host's address on it.
//!
//! It knows the sandboxes that are on the network, by name and `NAME.NETWORK`, and their addresses
//! backwards; what else is asked goes on to the servers this host uses, unless the asking sandbox may
//! not talk to the outside. It reads the network's record whenever that has changed, keeps nothing, and
//! ends when the record is gone.

mod answer;
mod serve;

pub use answer::{Decision, decide};
pub use serve::serve;

/// The word by which a helper program is told to serve names: `WORD FOLDER`.
pub const COMMAND: &str = "net-names";
