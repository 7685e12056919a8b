//! What an error is known by, and what to do about it.

use super::Error;

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
            Error::ContainerExists { .. } => "E-CONTAINER-EXISTS",
            Error::ContainerUnknown { .. } => "E-CONTAINER-UNKNOWN",
            Error::ContainerExited { .. } => "E-CONTAINER-EXITED",
            Error::ContainerBusy { .. } => "E-CONTAINER-BUSY",
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
            Error::PlugBusy { .. } | Error::ContainerBusy { .. } => {
                Some("wait a moment and try again".to_owned())
            }
            Error::Plug { source, .. } => source.help(),
            Error::Room { .. }
            | Error::Open { .. }
            | Error::Mount { .. }
            | Error::Create { .. }
            | Error::Specification { .. }
            | Error::Start { .. }
            | Error::NoContainer { .. }
            | Error::ContainerExited { .. }
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
            Error::ContainerExists { sandbox, name } => Some(format!(
                "remove it first (`coracle rm {sandbox}/{name}`), or choose another --name"
            )),
            Error::ContainerUnknown { sandbox, .. } => {
                Some(format!("see which there are: `coracle ls {sandbox}`"))
            }
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
