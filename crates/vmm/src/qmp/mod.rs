//! QMP, the language QEMU is controlled in: a client of our own, small and typed.
mod error;
pub use error::QmpError;
