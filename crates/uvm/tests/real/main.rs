//! The life of a VM on real QEMU with the real guest: what a script cannot prove.
//!
//! Few VMs are booted, each for several claims, since a boot without KVM takes seconds. The guest
//! files are those of `make setup`; without them these tests fail, and say so.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod boot;
mod containers;
mod death;
mod hard_cases;
mod layers;
mod machine;
mod plugs;
mod resources;
mod room;
mod scsi;
mod support;
mod vpci;
