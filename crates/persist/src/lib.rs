//! A sandbox's state as data, saved so that no crash loses it.
//!
//! What is saved, and under which names, is Kata Containers' persist API (`persistapi`,
//! 1.12.0-rc0): one `SandboxState` and a
//! `ContainerState` per container, in files its own driver reads. How it
//! is saved is ours:
//!
//! ```text
//!            model ──codec──► documents ──store──► state.log     one append, one fdatasync: the truth
//!   (typed states)   (bytes, one per file)   └───► persist.json  renamed into place afterwards,
//!                                                  <cid>/persist.json    for Kata's reader
//! ```
//!
//! * [`model`]: every type and member, with Go's zero as its default.
//! * [`codec`]: Go's JSON to the byte, and a reader that forgives what is harmless.
//! * [`foreign`]: files of other Kata versions, recognised by shape.
//! * [`store`]: a sandbox's documents on disk: log, projection, generations. It knows nothing of
//!   what the documents mean.
//! * [`id`], [`lock`], [`root`]: whose directory it is, and who may write there.
//! * [`driver`]: `PersistDriver` and those who are one.
//!
//! Deliberately absent: threads, async, and anything that looks at processes or devices. A state
//! says what was; whether it still is, the engine finds out.
#![forbid(unsafe_code)]

pub mod codec;
pub mod driver;
pub mod foreign;
pub mod id;
pub mod lock;
pub mod model;
pub mod root;
pub mod store;
