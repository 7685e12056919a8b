//! The host's end of the bridge, what `internal/gcs` is to hcsshim.
//!
//! [`GuestConnection`] negotiates and makes calls; [`Container`] and [`Process`]
//! are handles of what runs in the guest. One task owns the connection and
//! everything that is pending on it; handles talk to it and wait.
//!
//! The rules of a call are strict, because host and guest share nothing but this
//! connection: a guest that does not answer in time, or says something that makes
//! no sense, loses the whole bridge, and every pending call fails with it. With a
//! guest that keeps sessions that loses nothing else: a new connection finds
//! containers, processes, streams and exits where they were.

mod answer;
mod calls;
mod connection;
mod container;
mod driver;
mod error;
mod io_channel;
mod process;
mod registry;
mod rpc;
mod streams;

pub use connection::{ConnectOptions, GuestConnection, RPC_TIMEOUT, SHUTDOWN_TIMEOUT, Session};
pub use container::Container;
pub use error::{BridgeError, BridgeFault};
pub use process::{Process, StdinResume, StdioResume};
pub use streams::{StdinWriter, Stdio, StdoutReader};
