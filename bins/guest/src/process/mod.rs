//! Processes: how they are started and what their streams are connected to.

pub mod drain;
mod hand;
pub mod pipe;
pub mod program;
pub mod streams;
pub mod terminal;
