//! Which accelerator runs guest code.

use crate::{Accel, VmmError};

/// What runs guest code, once decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The CPU itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// A decision and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What runs guest code.
    pub engine: Engine,
    /// Why, for a person to read.
    pub why: String,
}

/// Decides.
pub fn choose(accel: Accel, _dir: Option<&std::path::Path>) -> Result<Choice, VmmError> {
    let _ = accel;
    Ok(Choice { engine: Engine::Tcg, why: "not tried".into() })
}
