//! What hcsshim v0.8.9 gives a Windows host, for the backend that will run there.
//!
//! Pure functions from options to text, compared with recorded originals in `tests/golden/hcs`.
//! The QEMU backend uses none of it: its kernel command line and its description are ours.

mod document;
mod kernel_args;

pub use document::document;
pub use kernel_args::kernel_args;

/// Which of two texts is wanted where hcsshim v0.8.9 is known to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The bytes hcsshim sends.
    Faithful,
    /// The bytes it should send: the entropy flag outside the debugging shell (inside it init
    /// never reads the entropy port and the start times out), the processors the VM really has
    /// in `nr_cpus`, and `Vhdx` for a root file that is one.
    Corrected,
}
