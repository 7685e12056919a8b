//! The guest's end of the bridge.
//!
//! A [`Guest`] holds containers, processes, their streams and their exits; these
//! outlive every connection. [`Guest::serve`] serves one connection, and is called
//! again for each new one. What a container or a process really is hides behind
//! [`GuestService`].
//!
//! With a host that knows our extension each connection is a *session* with a
//! number: the higher wins, and the guest drops the older. An exit stays in the
//! table until the host acknowledged it, and streams go on where the last session
//! left them. A plain host gets what hcsshim's guest gives it: bare streams, and a
//! notification once the init process's exit was delivered.

mod connection;
mod execution;
mod guest;
mod held;
mod reply;
mod service;
mod streams;
mod table;

pub use guest::{Guest, GuestOptions};
pub use service::{
    Connection, Created, Dial, ExitFuture, GuestService, ServiceError, Sink, Source, Started, Stop,
    Target,
};

/// How serving a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The host closed it, or went away between two messages.
    Closed,
    /// A newer connection is served now.
    Superseded,
    /// The host asked for the VM's end, and it is on its way.
    PoweringOff,
}

/// Why a connection could not be served any further.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection broke, or the host sent what is not a frame.
    #[error("the bridge connection failed")]
    Frame(#[from] crate::frame::FrameError),
}
