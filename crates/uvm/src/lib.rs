//! `UtilityVm`: one virtual machine and everything that is plugged into it.
//!
//! The crate is the seed's `internal/uvm` (hcsshim v0.8.9) in Rust: same names, same texts, same
//! order of checks, its known faults put right. What decides is pure and stands alone (options,
//! validation, documents, the state machine); what acts is small and goes through the machine
//! monitor ([`coracle_vmm`]) and the bridge to the guest ([`coracle_bridge`]).
#![forbid(unsafe_code)]

pub mod description;
pub mod hcs;
pub mod merge;
pub mod options;
mod state;
pub mod validate;

pub use state::{Event, Refused, State};
