//! A sandbox's documents on disk, committed together.
//!
//! A document is bytes with a name, `persist.json` or `<cid>/persist.json`; what they mean is the
//! driver's affair. The truth is `state.log`, to which a commit is appended as one frame:
//!
//! ```text
//!   state.log   ┌──────────┬───────┬───────┬───────┬─ ─ ─ ─ ─ ─ ─ ─┐
//!               │ snapshot │ delta │ delta │ delta │ preallocated  │
//!               └──────────┴───────┴───────┴───────┴─ ─ ─ ─ ─ ─ ─ ─┘
//!                 gen 7      gen 8   gen 9   gen 10  zeros
//!
//!   commit:  frame ──write──► log ──fdatasync──► committed ──► projection: each changed document
//!                                                              is written beside its file and
//!                                                              renamed over it
//! ```
//!
//! A frame counts when its checksum is right, so a commit is whole or not there. When the deltas
//! outgrow the snapshot, a new log with a snapshot is written beside the old one and renamed over
//! it; that rename is then the commit. Space for the next frames is allocated beforehand, so that a
//! full disk can still be told that a container has ended.
//!
//! The projected files are for others to read. They wear the time of their commit as their time of
//! change; a file with another time and other bytes was edited by someone else, and is set aside
//! before it is replaced.
//!
//! * [`frame`]: one commit as bytes. * [`replay`]: a log's bytes as documents. Both are pure.
//! * [`Folder`]: a sandbox's directory and its log, for one who holds the lock.
//! * `project` and `settle`: the files for others. * [`Disk`]: every call that changes something, counted, so
//!   that a test can let each of them fail.

mod disk;
mod error;
mod folder;
pub mod frame;
mod log;
mod peek;
mod project;
pub mod replay;
mod settle;
mod sight;

pub use disk::{Disk, Effect, Script, Then};
pub(crate) use disk::{entries, open_file, read_all};
pub use error::StoreError;
pub use folder::{Change, Committed, Folder, LOG_FILE};
pub(crate) use peek::{io, peek, salvage, see_beside};
pub(crate) use project::{FILE, OWN_FILE};
pub use project::{Note, SET_ASIDE};
pub use replay::{Generation, Likeness, Past, Print, Replay, Tail};
pub use sight::{Sight, Unprojected, see};
pub(crate) use sight::{is_dir, open_dir};
