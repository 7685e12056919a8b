//! The life of a VM on a machine that follows a script: real channel, real bridge, any order of
//! events.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod create;
mod failed_starts;
mod guest;
mod lifecycle;
mod network;
mod orders;
mod plugs;
mod support;
mod vpci;
