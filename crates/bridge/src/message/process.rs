//! Requests about one process.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Done;
use super::envelope::rpcs;
use crate::wire::{Body, Json, JsonString, Layout, Side, WireError, Zero, always, layout, maybe};

/// [`WaitForProcess::timeout_in_ms`] without a limit.
pub const WAIT_FOREVER: u32 = u32::MAX;

/// ExecuteProcess: starts a process in the container, or in the VM on the null id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecuteProcess {
    /// What to start and where its stdio goes.
    pub settings: ExecuteSettings,
}

/// The only field of [`ExecuteProcess`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecuteSettings {
    /// What to start.
    pub process_parameters: JsonString<ProcessParameters>,
    /// Sockets for stdio; Windows guests.
    pub stdio_relay_settings: Option<StdioRelay>,
    /// Ports for stdio; Linux guests.
    pub vsock_stdio_relay_settings: Option<VsockStdioRelay>,
}

/// What to start. In a Linux container: its init process when `oci_process` is absent, another one
/// in it when it is there. In the VM: `command_args`, or else `command_line` split as a shell does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ProcessParameters {
    /// Windows only.
    pub application_name: String,
    /// One line, split by the guest.
    pub command_line: String,
    /// The words of the command.
    pub command_args: Vec<String>,
    /// Windows only.
    pub user: String,
    /// Where it runs.
    pub working_directory: String,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Windows only.
    pub restricted_token: bool,
    /// Give it a terminal.
    pub emulate_console: bool,
    /// Its stdin comes from the host.
    pub create_std_in_pipe: bool,
    /// Its stdout goes to the host.
    pub create_std_out_pipe: bool,
    /// Its stderr goes to the host.
    pub create_std_err_pipe: bool,
    /// The terminal's size, height first.
    pub console_size: Option<(u16, u16)>,
    /// Windows only.
    pub use_existing_login: bool,
    /// Windows only.
    pub use_legacy_console: bool,
    /// Start it in the VM although a container is named.
    #[serde(rename = "CreateInUtilityVM")]
    pub create_in_utility_vm: bool,
    /// An OCI specification; no current host sends it.
    pub oci_specification: Option<Json>,
    /// An OCI process: start it in the running container.
    pub oci_process: Option<Json>,
}

impl ProcessParameters {
    /// The same, for an OCI process in a container that runs.
    ///
    /// # Errors
    /// When the document has a map whose keys are no text.
    pub fn with_oci_process<S: Serialize>(self, process: &S) -> Result<Self, WireError> {
        Ok(Self { oci_process: Some(Json::of(process)?), ..self })
    }
}

/// Ports of the host for stdio; 0 where a stream is not wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VsockStdioRelay {
    /// Port for stdin.
    pub std_in: u32,
    /// Port for stdout.
    pub std_out: u32,
    /// Port for stderr.
    pub std_err: u32,
}

/// Hyper-V socket ids for stdio, GUIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct StdioRelay {
    /// Socket for stdin.
    pub std_in: Option<String>,
    /// Socket for stdout.
    pub std_out: Option<String>,
    /// Socket for stderr.
    pub std_err: Option<String>,
}

/// The answer to [`ExecuteProcess`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Executed {
    /// The process id in the guest.
    pub process_id: u32,
}

/// WaitForProcess: answered when the process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WaitForProcess {
    /// Which one.
    pub process_id: u32,
    /// Milliseconds; [`WAIT_FOREVER`] is no limit.
    pub timeout_in_ms: u32,
}

/// The answer to [`WaitForProcess`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Exited {
    /// 0..=255 for one that exited itself, 128 + n for one a signal killed.
    pub exit_code: u32,
}

/// SignalProcess. `O` are the options for the guest's system: [`SignalOptions`] or
/// [`WindowsSignalOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", bound(deserialize = "O: serde::de::DeserializeOwned"))]
pub struct SignalProcess<O = SignalOptions> {
    /// Which one.
    pub process_id: u32,
    /// Which signal; absent kills.
    pub options: Option<O>,
}

impl<O> Default for SignalProcess<O> {
    fn default() -> Self {
        Self { process_id: 0, options: None }
    }
}

/// A signal to a Linux process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SignalOptions {
    /// Its number; 0 means SIGKILL.
    pub signal: i32,
}

/// A signal to a Windows process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WindowsSignalOptions {
    /// `CtrlC`, `CtrlBreak`, `CtrlClose`, `CtrlLogOff` or `CtrlShutdown`.
    pub signal: String,
}

/// ResizeConsole: the new size of the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ResizeConsole {
    /// Which process.
    pub process_id: u32,
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

rpcs! {
    ExecuteProcess = EXECUTE_PROCESS -> Executed;
    WaitForProcess = WAIT_FOR_PROCESS -> Exited;
    SignalProcess<SignalOptions> = SIGNAL_PROCESS -> Done;
    SignalProcess<WindowsSignalOptions> = SIGNAL_PROCESS -> Done;
    ResizeConsole = RESIZE_CONSOLE -> Done;
}

impl Body for ExecuteProcess {
    fn layout(&self, side: Side) -> Layout {
        const HOST: Layout = &[
            always("ProcessParameters", Zero::QuotedNull),
            maybe("StdioRelaySettings"),
            maybe("VsockStdioRelaySettings"),
        ];
        const GUEST: Layout = &[
            always("ProcessParameters", Zero::Text),
            always("VsockStdioRelaySettings", Zero::Object),
        ];
        match side {
            Side::Host => layout![always("Settings", Zero::Object).holding(HOST)],
            Side::Guest => layout![always("Settings", Zero::Object).holding(GUEST)],
        }
    }
}

impl Body for Executed {
    fn layout(&self, _side: Side) -> Layout {
        layout![always("ProcessId", Zero::Number)]
    }
}

impl Body for WaitForProcess {
    fn layout(&self, _side: Side) -> Layout {
        layout![always("ProcessId", Zero::Number), always("TimeoutInMs", Zero::Number)]
    }
}

impl Body for Exited {
    fn layout(&self, _side: Side) -> Layout {
        layout![always("ExitCode", Zero::Number)]
    }
}

impl<O: Serialize + serde::de::DeserializeOwned> Body for SignalProcess<O> {
    fn layout(&self, side: Side) -> Layout {
        match side {
            Side::Host => layout![always("ProcessId", Zero::Number), maybe("Options")],
            Side::Guest => layout![
                always("ProcessId", Zero::Number),
                always("Options", Zero::Object).holding(layout![always("Signal", Zero::Number)]),
            ],
        }
    }
}

impl Body for ResizeConsole {
    fn layout(&self, _side: Side) -> Layout {
        layout![
            always("ProcessId", Zero::Number),
            always("Height", Zero::Number),
            always("Width", Zero::Number),
        ]
    }
}
