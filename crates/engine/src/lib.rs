//! A sandbox: a utility VM, its image and its life.
//!
//! This crate joins what knows nothing of each other: the image crate makes a root file
//! system, the utility VM boots and runs containers, and here stands who owns what, in which
//! order things come and go, and what is said when they do not. Today one process launches a
//! sandbox, waits for its command and takes everything down again ([`Sandbox`]); the ownership
//! is in one place so that another process can take it over.
//!
//! * [`spec`]: what is asked for, checked and completed from the image's defaults (pure);
//! * [`oci`]: from there to an OCI runtime specification (pure);
//! * [`sandbox`]: the order of things;
//! * [`container`]: the command that runs;
//! * [`root`], [`run_dir`]: directories and who owns them;
//! * [`timeline`]: when each phase was reached.

#![forbid(unsafe_code)]

pub mod container;
mod error;
pub mod oci;
pub mod progress;
pub mod root;
pub mod run_dir;
pub mod sandbox;
pub mod spec;
pub mod timeline;

pub use container::{Container, Input, Output};
pub use coracle_uvm::keeper;
pub use error::Error;
pub use progress::{OnProgress, Step};
pub use sandbox::Sandbox;
pub use spec::{Accel, Command, RootFs, SandboxSpec};
