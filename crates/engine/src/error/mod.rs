//! What can go wrong in a sandbox, with a stable code and the next thing to do.

mod advice;

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
    /// The sandbox has a container of this name already.
    #[error("the sandbox {sandbox} has a container {name} already")]
    ContainerExists {
        /// The sandbox.
        sandbox: String,
        /// The container.
        name: String,
    },
    /// The sandbox has no further container of this name.
    #[error("the sandbox {sandbox} has no container {name}")]
    ContainerUnknown {
        /// The sandbox.
        sandbox: String,
        /// The container.
        name: String,
    },
    /// The container is on its way in or out.
    #[error("the container {name} is being started or removed")]
    ContainerBusy {
        /// The container.
        name: String,
    },
    /// The container's command has ended.
    #[error("the command of the container {name} has ended")]
    ContainerExited {
        /// The container.
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
