//! What can go wrong in a sandbox, with a stable code and the next thing to do.

use std::path::PathBuf;

use coracle_uvm::container::BridgeError;

use crate::plug::Kind;
use crate::run_dir::RunDirError;

/// A failure of the engine. Its text names operation and object; causes are its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name given is none.
    #[error("{name:?} cannot name a sandbox")]
    BadName {
        /// The text given.
        name: String,
    },
    /// A setting cannot be had.
    #[error(transparent)]
    Setting(#[from] crate::settings::SettingsError),
    /// Neither user nor image says what to run.
    #[error("there is no command to run")]
    NoCommand,
    /// The working directory is relative.
    #[error("the working directory {path:?} is not absolute")]
    RelativeDirectory {
        /// The directory given.
        path: String,
    },
    /// The sandbox's directory cannot be had.
    #[error("cannot make room for the sandbox {name}")]
    Room {
        /// The sandbox.
        name: String,
        /// Why.
        source: RunDirError,
    },
    /// The root file system cannot be used.
    #[error("cannot use {path} as root file system")]
    RootFs {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: Box<coracle_image::ImageError>,
    },
    /// The scratch disk cannot be made.
    #[error("cannot make a scratch disk of {mib} MiB")]
    Scratch {
        /// Its size in MiB.
        mib: u64,
        /// Why.
        source: coracle_image::scratch::ScratchError,
    },
    /// A file could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The guest's files are not there.
    #[error("the guest file {path} is not there")]
    NoGuest {
        /// The missing file.
        path: PathBuf,
    },
    /// The VM could not be made or started.
    #[error("cannot start the virtual machine of {name}")]
    Boot {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// The guest did not mount what it was given.
    #[error("cannot mount the {what} in {name}")]
    Mount {
        /// The sandbox.
        name: String,
        /// Which disk or overlay.
        what: &'static str,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// The container could not be made.
    #[error("cannot create the container in {name}")]
    Create {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// The specification could not be built.
    #[error("cannot describe the container of {name}")]
    Specification {
        /// The sandbox.
        name: String,
        /// Why.
        source: oci_spec::OciSpecError,
    },
    /// There is no such program in the container.
    #[error("the command {command:?} was not found in the container")]
    CommandNotFound {
        /// The program.
        command: String,
        /// What the guest said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is there but cannot be executed.
    #[error("the command {command:?} cannot be executed")]
    CommandNotExecutable {
        /// The program.
        command: String,
        /// What the guest said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The command could not be started for another reason.
    #[error("cannot start {command:?}")]
    Start {
        /// The program.
        command: String,
        /// Why.
        source: BridgeError,
    },
    /// It has ended, or is about to.
    #[error("the sandbox {name} is not running")]
    NotRunning {
        /// The sandbox.
        name: String,
    },
    /// No further command has this id, or it was forgotten.
    #[error("no command {id} was started here")]
    NoExec {
        /// The id.
        id: u64,
    },
    /// There is no container to run it in.
    #[error("there is no container in {name} yet")]
    NoContainer {
        /// The sandbox.
        name: String,
    },
    /// The VM or the way to it was lost while the command ran.
    #[error("lost the sandbox {name} while its command ran")]
    Lost {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The command could not be signalled or resized.
    #[error("cannot {what} the command in {name}")]
    Control {
        /// The sandbox.
        name: String,
        /// `signal`, `resize` or `kill`.
        what: &'static str,
        /// Why.
        source: BridgeError,
    },
    /// The VM, or its guest, refused something.
    #[error("cannot {what} the sandbox {name}")]
    Vm {
        /// The sandbox.
        name: String,
        /// `pause`, `update`, `read the use of`.
        what: &'static str,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// Its VM stands still.
    #[error("the sandbox {name} is paused")]
    Paused {
        /// The sandbox.
        name: String,
    },
    /// The VM could not be taken down.
    #[error("cannot take down the sandbox {name}")]
    Close {
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// Something that cannot be plugged in as asked.
    #[error("cannot plug in {source_path}: {why}")]
    BadPlug {
        /// The path on the host.
        source_path: String,
        /// What is wrong.
        why: String,
    },
    /// Something is at the destination already.
    #[error("{destination} is taken by {holder}")]
    DestinationTaken {
        /// The path in the container.
        destination: String,
        /// The path on the host of what is there.
        holder: String,
    },
    /// Nothing of this kind answers to the name.
    #[error("no {kind} {key} is plugged in")]
    NotPlugged {
        /// Its kind.
        kind: Kind,
        /// The source or destination given.
        key: String,
    },
    /// Several things answer to the name.
    #[error("{key} is plugged in more than once: at {}", names.join(", "))]
    AmbiguousPlug {
        /// Its kind.
        kind: Kind,
        /// The source given.
        key: String,
        /// The destinations.
        names: Vec<String>,
    },
    /// Somebody is plugging it in or taking it out.
    #[error("the {kind} {key} is just being plugged in or taken out")]
    PlugBusy {
        /// Its kind.
        kind: Kind,
        /// The source or destination given.
        key: String,
    },
    /// The VM did not take it, or does not let go of it.
    #[error("cannot {what} the {kind} {path}")]
    Plug {
        /// `plug in`, `take out`, `show in the container`.
        what: &'static str,
        /// Its kind.
        kind: Kind,
        /// Its path on the host.
        path: String,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// A network cannot be had as it is asked for.
    #[error("network {network}: {why}")]
    BadNetwork {
        /// The network.
        network: String,
        /// Why not.
        why: String,
    },
    /// The host's side of a network failed.
    #[error("cannot {what}")]
    Network {
        /// `join network default`, ...
        what: String,
        /// Why.
        source: Box<coracle_net::NetError>,
    },
    /// The VM's side of a network failed.
    #[error("cannot {what} network {network}")]
    Endpoint {
        /// `attach`, `detach`.
        what: &'static str,
        /// The network.
        network: String,
        /// Why.
        source: Box<coracle_uvm::UvmError>,
    },
    /// A sandbox is on a network once.
    #[error("sandbox {name} is on network {network} already")]
    NetworkTaken {
        /// The sandbox.
        name: String,
        /// The network.
        network: String,
    },
    /// A sandbox is not on a network.
    #[error("sandbox {name} is not on network {network}")]
    NotOnNetwork {
        /// The sandbox.
        name: String,
        /// The network.
        network: String,
    },
    /// There is no sandbox of that name.
    #[error("there is no sandbox named {name}")]
    NoSandbox {
        /// The name.
        name: String,
    },
    /// It cannot be started.
    #[error("the sandbox {name} runs already")]
    Runs {
        /// The sandbox.
        name: String,
    },
    /// There is a sandbox of that name.
    #[error("there is a sandbox named {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// What is written down of a sandbox cannot be read or written.
    #[error("cannot {what} the state of sandbox {name}")]
    State {
        /// `read`, `write`, `remove`.
        what: &'static str,
        /// The sandbox.
        name: String,
        /// Why.
        source: Box<coracle_persist::driver::DriverError>,
    },
    /// The states cannot be listed.
    #[error("cannot list the states of the sandboxes")]
    States {
        /// Why.
        source: Box<coracle_persist::driver::DriverError>,
    },
    /// A later coracle wrote it.
    #[error("the record of sandbox {name} has form {schema}, which this coracle does not know")]
    NewerRecord {
        /// The sandbox.
        name: String,
        /// Its form.
        schema: u64,
    },
    /// It is damaged.
    #[error("the record of sandbox {name} is damaged")]
    BadRecord {
        /// The sandbox.
        name: String,
        /// In what way.
        source: serde_json::Error,
    },
    /// What its command writes cannot be kept.
    #[error("cannot keep the log of sandbox {name}")]
    Log {
        /// The sandbox.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something of it cannot be taken away.
    #[error("cannot take away what is left of sandbox {name}")]
    Leftovers {
        /// The sandbox.
        name: String,
        /// What it is.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A test asked for it.
    #[error("a test asked for this failure")]
    Injected,
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The code that `coracle explain` and programs know this failure by.
    pub fn code(&self) -> &'static str {
        match self {
            Error::BadName { .. } => "E-NAME",
            Error::Setting(source) => source.code(),
            Error::NoCommand => "E-COMMAND-NONE",
            Error::RelativeDirectory { .. } => "E-WORKDIR",
            Error::Room { .. } => "E-RUN-DIR",
            Error::RootFs { source, .. } => source.code(),
            Error::Scratch { source, .. } => source.code(),
            Error::Open { .. } => "E-OPEN",
            Error::NoGuest { .. } => "E-GUEST-FILES",
            Error::Boot { source, .. }
            | Error::Mount { source, .. }
            | Error::Create { source, .. }
            | Error::Close { source, .. } => source.code(),
            Error::Specification { .. } => "E-SPECIFICATION",
            Error::CommandNotFound { .. } => "E-COMMAND-NOT-FOUND",
            Error::CommandNotExecutable { .. } => "E-COMMAND-NOT-EXECUTABLE",
            Error::Start { .. } => "E-START",
            Error::NoContainer { .. } => "E-CONTAINER-NONE",
            Error::NotRunning { .. } => "E-NOT-RUNNING",
            Error::NoExec { .. } => "E-EXEC-UNKNOWN",
            Error::Lost { .. } => "E-LOST",
            Error::Control { .. } => "E-CONTROL",
            Error::Vm { source, .. } => source.code(),
            Error::Paused { .. } => "E-PAUSED",
            Error::BadNetwork { .. } => "E-NET-ASKED",
            Error::Network { source, .. } => source.code(),
            Error::Endpoint { source, .. } => source.code(),
            Error::NetworkTaken { .. } => "E-NET-ATTACHED",
            Error::NotOnNetwork { .. } => "E-NET-NOT-ATTACHED",
            Error::BadPlug { .. } => "E-PLUG",
            Error::DestinationTaken { .. } => "E-PLUG-DESTINATION",
            Error::NotPlugged { .. } => "E-PLUG-UNKNOWN",
            Error::AmbiguousPlug { .. } => "E-PLUG-AMBIGUOUS",
            Error::PlugBusy { .. } => "E-PLUG-BUSY",
            Error::Plug { source, .. } => source.code(),
            Error::NoSandbox { .. } => "E-SANDBOX-UNKNOWN",
            Error::Runs { .. } => "E-SANDBOX-RUNS",
            Error::Exists { .. } => "E-SANDBOX-EXISTS",
            Error::State { source, .. } | Error::States { source } => source.code(),
            Error::NewerRecord { .. } => "E-STATE-NEWER",
            Error::BadRecord { .. } => "E-STATE-DAMAGED",
            Error::Log { .. } => "E-LOG",
            Error::Leftovers { .. } => "E-LEFTOVERS",
            Error::Injected => "E-INJECTED",
            Error::Interrupted => "E-INTERRUPTED",
        }
    }

    /// What the user can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Error::BadName { .. } => Some(
                "use up to 64 letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
                    .to_owned(),
            ),
            Error::Setting(source) => Some(source.help().to_owned()),
            Error::NoCommand => {
                Some("write one after `--`, as in `coracle run -- uname -a`".to_owned())
            }
            Error::RelativeDirectory { path } => Some(format!("write --workdir /{path}")),
            Error::NoGuest { .. } => Some(
                "make the guest's files with `coracle guest build` (or `make setup`)".to_owned(),
            ),
            Error::Boot { source, .. } => {
                Some(source.help().unwrap_or_else(|| {
                    "run `coracle doctor` to see what this host lacks".to_owned()
                }))
            }
            Error::Paused { name } => Some(format!("let it go on with `coracle resume {name}`")),
            Error::Vm { source, .. } | Error::Endpoint { source, .. } => source.help(),
            Error::Network { source, .. } => source.help(),
            Error::NotOnNetwork { name, .. } => {
                Some(format!("`coracle net ls {name}` tells which it is on"))
            }
            Error::CommandNotFound { .. } => Some(
                "look what the root file system holds: `coracle run ROOTFS -- ls /bin`".to_owned(),
            ),
            Error::CommandNotExecutable { .. } => {
                Some("it must be a program or a script with `#!`, with the x bit set".to_owned())
            }
            Error::RootFs { source, .. } => Some(source.help().to_owned()),
            Error::Scratch { source, .. } => Some(source.help().to_owned()),
            Error::BadPlug { .. } => Some(
                "SOURCE and DESTINATION are absolute paths: /on/the/host /in/containers".to_owned(),
            ),
            Error::DestinationTaken { .. } => {
                Some("choose another destination, or remove what is there".to_owned())
            }
            Error::NotPlugged { kind, .. } => {
                Some(format!("see what is: `coracle {kind} ls SANDBOX`"))
            }
            Error::AmbiguousPlug { .. } => Some("name the destination".to_owned()),
            Error::PlugBusy { .. } => Some("wait a moment and try again".to_owned()),
            Error::Plug { source, .. } => source.help(),
            Error::Room { .. }
            | Error::Open { .. }
            | Error::Mount { .. }
            | Error::Create { .. }
            | Error::Specification { .. }
            | Error::Start { .. }
            | Error::NoContainer { .. }
            | Error::NotRunning { .. }
            | Error::NoExec { .. }
            | Error::Lost { .. }
            | Error::Control { .. }
            | Error::Close { .. }
            | Error::NetworkTaken { .. }
            | Error::States { .. }
            | Error::Runs { .. }
            | Error::Log { .. }
            | Error::Injected
            | Error::Interrupted => None,
            Error::NoSandbox { .. } => Some("see what there is: `coracle ls`".to_owned()),
            Error::Exists { name } => {
                Some(format!("remove it first (`coracle rm {name}`), or choose another --name"))
            }
            Error::State { name, .. } | Error::BadRecord { name, .. } => {
                Some(format!("`coracle state verify {name}` tells what is wrong with it"))
            }
            Error::NewerRecord { .. } => {
                Some("use the coracle that wrote it, or a later".to_owned())
            }
            Error::Leftovers { .. } => {
                Some("`coracle gc` lists what it is; try again with `coracle recover`".to_owned())
            }
            Error::BadNetwork { network, .. } if network == "host" => {
                Some("publish ports with -p, or pass a socket with --pipe".to_owned())
            }
            Error::BadNetwork { .. } => {
                Some("use a network of ours (`--net NAME`) for ports and egress rules".to_owned())
            }
        }
    }

    /// The exit code that belongs to the command and not to us, if this is its failure.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Error::CommandNotFound { .. } => Some(127),
            Error::CommandNotExecutable { .. } => Some(126),
            _ => None,
        }
    }
}
