//! A 9P2000.L server for one directory of the host, which nothing leads out of.
//!
//! ```text
//!   connection ─► wire (frame, decode) ─► session (fids) ─► node (descriptors) ─► the directory
//! ```
//!
//! The client is a guest and not trusted. It never names a path: it walks, name by name, from a
//! descriptor of the directory, and each step is one `openat2` of one name beneath a descriptor
//! reached before, following no link. Links are handed out as text for the guest to follow in its own
//! tree; `..` leads to where a step came from. So neither a link nor a rename in the middle of a walk,
//! by whichever side, can lead outside. Devices, sockets and FIFOs are seen and never opened.
//!
//! One thread serves one connection, one request after the other. What the protocol has and this
//! server has not: authentication, extended attributes, `Trename` and `Tremove` (the kernel uses
//! `Trenameat` and `Tunlinkat`).
#![forbid(unsafe_code)]

mod attr;
mod export;
mod lock;
mod node;
mod serve;
mod session;
mod wire;
mod xattr;

pub use export::{Export, ExportError};
pub use serve::{ServeError, serve, serve_connection};
pub use session::Session;
