//! The two operations libcontainer does as we want them: start with hooks, and delete.

use anyhow::{Context, Result};
use libcontainer::container::Container;

use super::{bundle, layout, state};

/// Starts a container and runs its poststart hooks.
pub fn start(id: &str) -> Result<()> {
    let mut container = Container::load(state(id)).context("loading the container's state")?;
    container.start().context("starting the container")
}

/// Kills what still runs, removes the cgroup and the state, runs the poststop hooks.
pub fn delete(id: &str) -> Result<()> {
    if state(id).exists() {
        let mut container = Container::load(state(id)).context("loading the container's state")?;
        container.delete(true).context("deleting the container")?;
    }
    layout::discard(&bundle(id));
    Ok(())
}
