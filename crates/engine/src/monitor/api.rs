//! What is said over a monitor's API: the types of both ends.
//!
//! HTTP with JSON on the unix socket `api.sock` of the sandbox's run directory. All requests stand in one
//! table, `monitor/routes`, of which `docs/openapi.json` is made; `coracle api` prints it.
//!
//! A failure has a status of 400 and more and a [`Failure`] as its body. The streams of an exec are
//! connections of their own to `stdio.sock` ([`super::streams`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::drift::Drift;
pub use crate::further::{ContainerOrder, ContainerStage, ContainerView};
pub use crate::life::Stage;
pub use crate::network::{AttachRequest, Attached};
pub use crate::plug::{Kind, PlugSpec, Plugged};
pub use crate::spec::Command;
pub use crate::update::{Limits, Update};
pub use crate::usage::Usage;

/// A sandbox as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxView {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: Stage,
    /// How its command ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u32>,
    /// When it was started, RFC 3339.
    pub created: String,
    /// When its command ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// What is to be said of its end, when it did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often its command was started again.
    #[serde(default)]
    pub restarts: u32,
    /// How well its command is, if that is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<crate::health::Health>,
    /// The root file system: a path, or `built-in`.
    pub rootfs: String,
    /// The command.
    pub command: Vec<String>,
    /// Memory of the VM in MiB.
    pub memory_mib: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// The process that owns it, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<ProcessView>,
    /// The process that runs the VM, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<ProcessView>,
    /// The networks it is on.
    #[serde(default)]
    pub networks: Vec<Attached>,
    /// What is plugged in.
    pub plugs: Vec<Plugged>,
    /// The containers beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerView>,
}

/// A process of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessView {
    /// Its number.
    pub pid: u32,
}

/// What there is to see of a sandbox that does not do what it should.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnostics {
    /// The stacks of the agent's tasks.
    pub guest_stacks: String,
    /// The last lines of the guest's kernel.
    pub console: String,
    /// What the machine monitor says of the VM.
    pub vm_status: String,
}

/// How a command ended: 0 to 255, 128 and a signal's number for one it died of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// The code.
    pub exit_code: u32,
}

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignalRequest {
    /// Its number.
    pub signal: i32,
}

/// How long a stop may take before it is done by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// Seconds.
    pub timeout: u64,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SizeRequest {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A further container that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartedContainer {
    /// The container.
    pub container: ContainerView,
    /// What its order said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// What opens its streams, if it is not detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Started>,
}

/// A further command that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Its id in this sandbox.
    pub id: u64,
    /// What opens its streams, each once.
    pub token: String,
}

/// What to take out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveRequest {
    /// Its kind.
    pub kind: Kind,
    /// Its destination or its source.
    pub key: String,
}

/// Which network to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaveRequest {
    /// Its name.
    pub network: String,
}

/// Something failed on the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Its causes, the nearest first.
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The exit code that belongs to the command and not to us, if it is its failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

impl Failure {
    /// What an error has to say.
    pub fn of(error: &crate::Error) -> Self {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self {
            code: error.code().to_owned(),
            message: error.to_string(),
            causes,
            help: error.help(),
            exit_code: error.exit_code(),
        }
    }
}

/// What a monitor says on its standard output while it starts, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// How far it is.
    Progress(crate::Step),
    /// The command runs.
    Ready(Box<SandboxView>),
    /// It came to nothing.
    Failed(Failure),
}

/// What a monitor is told on its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The sandbox.
    pub sandbox: crate::SandboxSpec,
    /// Its command.
    pub command: Command,
    /// Remove the sandbox when the command has ended.
    pub remove: bool,
    /// Whether the command is started again when it has ended.
    #[serde(default)]
    pub restart: crate::restart::Policy,
    /// How it is found out whether the command is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<crate::health::Check>,
    /// How much of what it writes is kept.
    #[serde(default)]
    pub log: crate::logs::Limits,
    /// What becomes of what cannot be kept.
    #[serde(default)]
    pub when_full: crate::logs::WhenFull,
}
