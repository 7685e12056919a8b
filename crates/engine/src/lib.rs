//! A sandbox: a utility VM, its image and its life.
//!
//! This crate joins what knows nothing of each other: the image crate makes a root file
//! system, the utility VM boots and runs containers, and here stands who owns what, in which
//! order things come and go, and what is said when they do not. A sandbox is owned by one process
//! and written down step by step, so that another process can take it over.
//!
//! * [`spec`]: what is asked for, checked and completed from the image's defaults (pure);
//! * [`oci`]: from there to an OCI runtime specification (pure);
//! * [`life`]: the stages of a sandbox, and what to do with one whose owner died (pure);
//! * [`restart`], [`health`]: whether a command is started again, and whether it is well (pure);
//! * [`settings`]: how a host or a user wants sandboxes, in the words of seed `persistapi`;
//! * [`sandbox`]: the order of things;
//! * [`process`]: a command that runs;
//! * [`plug`]: what is plugged in, and what containers see of it;
//! * [`network`]: the networks it is on;
//! * [`record`], [`ledger`], [`projection`]: what is written down, when, and as Kata reads it;
//! * [`logs`], [`events`]: what its command wrote, and what happened to it;
//! * [`root`], [`run_dir`]: directories and who owns them;
//! * [`monitor`], [`supervise`], [`client`]: the process that owns a sandbox, who starts it anew, and
//!   how others talk to it;
//! * [`recover`], [`gc`]: what is left behind, and how it goes;
//! * [`timeline`]: when each phase was reached.

#![forbid(unsafe_code)]

pub mod client;
pub mod drift;
mod error;
pub mod events;
pub mod further;
pub mod gc;
pub mod health;
pub mod image;
pub mod ledger;
pub mod life;
pub mod logs;
pub mod monitor;
pub mod network;
pub mod oci;
pub mod plug;
mod points;
pub mod process;
pub mod progress;
pub mod projection;
pub mod record;
pub mod recover;
pub mod restart;
pub mod root;
pub mod run_dir;
pub mod sandbox;
pub mod settings;
pub mod spec;
pub mod supervise;
pub mod timeline;
pub mod update;
pub mod usage;
mod vm_options;

pub use coracle_uvm::keeper;
pub use coracle_uvm::share::server as plan9;
pub use error::Error;
pub use process::{Input, Output, Process};
pub use progress::{OnProgress, Step};
pub use sandbox::Sandbox;
pub use spec::{Accel, Command, RootFs, SandboxSpec};
