//! Further containers: what else runs in a sandbox, beside its own command.
//!
//! ```text
//!              CREATING ──────► RUNNING ──────► EXITED ──────► (nothing)
//!                 │    started    │    ended      │    remove
//!                 ▼ failed        └─── with the sandbox
//!             (nothing)
//! ```
//!
//! Each has an image, a writable layer, a command and namespaces of its own; VM, networks and what is
//! plugged in are the sandbox's. The sandbox lives as long as its own command: when that ends, all of
//! them end. Here is what is asked, written down and shown; [`Sandbox`](crate::Sandbox) makes them,
//! the monitor looks after them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::logs::{Limits, WhenFull};
use crate::record::{ContainerRecord, now};
use crate::spec::{Command, RootFs, check_name};

/// How a container ends whose sandbox ends: as by SIGKILL.
pub(crate) const KILLED: u32 = 128 + 9;

/// What is to be started in a sandbox that runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ContainerOrder {
    /// Its name, that no other container of the sandbox has.
    pub name: String,
    /// Its root file system; a path is the monitor's, so absolute.
    pub rootfs: RootFs,
    /// Its command.
    pub command: Command,
    /// No writes to the root file system.
    #[serde(default)]
    pub read_only: bool,
    /// Nobody waits for its output: it goes to a log.
    #[serde(default)]
    pub detached: bool,
    /// Forget it when its command has ended; one with somebody at its streams, a minute later at the
    /// latest.
    #[serde(default)]
    pub remove: bool,
    /// What its caller knows it by who has not heard whether it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// How much of what it writes is kept, if it is detached.
    #[serde(default)]
    pub log: Limits,
    /// What becomes of what cannot be kept.
    #[serde(default)]
    pub when_full: WhenFull,
}

impl ContainerOrder {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// The name is no file name, or is the sandbox's: its own container has that.
    pub(crate) fn check(&self, sandbox: &str) -> Result<(), Error> {
        check_name(&self.name)?;
        if self.name == sandbox {
            return Err(self.taken(sandbox));
        }
        Ok(())
    }

    /// Somebody else has the name.
    pub(crate) fn taken(&self, sandbox: &str) -> Error {
        Error::ContainerExists { sandbox: sandbox.to_owned(), name: self.name.clone() }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerStage {
    /// It is being started; nobody was told yet that it runs.
    Creating,
    /// Its command runs.
    Running,
    /// Its command has ended.
    Exited,
}

impl ContainerStage {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

/// A further container as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FurtherRecord {
    /// What was asked for.
    pub order: ContainerOrder,
    /// When, RFC 3339.
    pub created: String,
    /// What of it is in the guest; none until all is known that has to be.
    #[serde(default)]
    pub there: Option<ContainerRecord>,
    /// How its command ended, if it has.
    #[serde(default)]
    pub exit_code: Option<u32>,
    /// When, RFC 3339.
    #[serde(default)]
    pub ended: Option<String>,
    /// What is to be said of its end, when it did not end by itself.
    #[serde(default)]
    pub reason: Option<String>,
    /// Nothing of it is in the VM any more.
    #[serde(default)]
    pub is_cleared: bool,
}

impl FurtherRecord {
    /// One that is about to be made.
    pub(crate) fn creating(order: ContainerOrder) -> Self {
        Self {
            order,
            created: now(),
            there: None,
            exit_code: None,
            ended: None,
            reason: None,
            is_cleared: false,
        }
    }

    /// Where it is in its life.
    pub fn stage(&self) -> ContainerStage {
        match (&self.there, self.exit_code) {
            (_, Some(_)) => ContainerStage::Exited,
            (Some(there), None) if there.pid.is_some() => ContainerStage::Running,
            (Some(_) | None, None) => ContainerStage::Creating,
        }
    }

    /// Its command has ended; what was said first counts.
    pub(crate) fn end(&mut self, code: u32, reason: Option<&str>) {
        if self.exit_code.is_none() {
            self.exit_code = Some(code);
            self.ended = Some(now());
            self.reason = reason.map(str::to_owned);
        }
    }

    /// As it is shown.
    pub fn view(&self) -> ContainerView {
        let command = self.there.as_ref().map(|there| there.command.args.clone());
        ContainerView {
            name: self.order.name.clone(),
            state: self.stage(),
            exit_code: self.exit_code,
            created: self.created.clone(),
            ended: self.ended.clone(),
            reason: self.reason.clone(),
            rootfs: self.order.rootfs.shown(),
            command: command.unwrap_or_else(|| self.order.command.args.clone()),
        }
    }
}

/// A further container as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: ContainerStage,
    /// How its command ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// When it was started, RFC 3339.
    pub created: String,
    /// When its command ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// What is to be said of its end, when it did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The root file system: a path, or `built-in`.
    pub rootfs: String,
    /// The command.
    pub command: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(name: &str) -> ContainerOrder {
        ContainerOrder {
            name: name.to_owned(),
            rootfs: RootFs::BuiltIn,
            command: Command { args: vec!["true".to_owned()], ..Command::default() },
            read_only: false,
            detached: true,
            remove: false,
            nonce: None,
            log: Limits::default(),
            when_full: WhenFull::Block,
        }
    }

    #[test]
    fn a_name_that_is_no_file_name_or_is_the_sandboxs_own_is_refused() {
        assert!(order("db").check("web").is_ok());
        assert!(matches!(order("web").check("web"), Err(Error::ContainerExists { .. })));
        assert!(matches!(order("../x").check("web"), Err(Error::BadName { .. })));
    }

    #[test]
    fn the_first_end_that_is_told_is_the_end() {
        let mut record = FurtherRecord::creating(order("db"));
        assert_eq!(record.stage(), ContainerStage::Creating);
        record.end(3, None);
        record.end(KILLED, Some("its sandbox ended"));
        assert_eq!((record.exit_code, record.reason.as_deref()), (Some(3), None));
        assert_eq!(
            (record.stage(), record.view().state.name()),
            (ContainerStage::Exited, "exited")
        );
    }
}
