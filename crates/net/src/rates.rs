//! How fast a sandbox may send and receive. Plain data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most a sandbox may send and receive, in bytes a second; none: as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Rates {
    /// What comes to it.
    pub receive: Option<u64>,
    /// What it sends.
    pub send: Option<u64>,
}

impl Rates {
    /// Whether there is no limit.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}
