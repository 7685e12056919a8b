//! What can go wrong on the host's side of a network.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use nftables::helper::NftablesError;

/// The result of work on the host's network.
pub type Result<T, E = NetError> = std::result::Result<T, E>;

/// Work on the host's network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The kernel refused something it was asked over netlink.
    #[error("cannot {what}")]
    Kernel {
        /// What was asked.
        what: String,
        /// What it said.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel has no support for a kind of device.
    #[error("this host's kernel has no {kind} devices ({option})")]
    Unsupported {
        /// The kind.
        kind: &'static str,
        /// The kernel option that makes them.
        option: &'static str,
    },
    /// A system call on a file, a device or a namespace failed.
    #[error("cannot {what} {path}")]
    File {
        /// What was done.
        what: &'static str,
        /// To which file or device.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A thread or socket could not be had.
    #[error("cannot {what}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no such device.
    #[error("there is no network device {name}")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// A device is not what it has to be.
    #[error("{name}: {why}")]
    Device {
        /// The device, or the endpoint.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// `nft` is not there.
    #[error("the program `nft` is not installed")]
    NoNft,
    /// `nft` refused rules of ours.
    #[error("cannot {what}")]
    Rules {
        /// What was to be done.
        what: String,
        /// What it said.
        #[source]
        source: Box<NftablesError>,
    },
    /// What a user wrote cannot be read.
    #[error("{text:?} is no {what}: {why}")]
    Text {
        /// What it should be.
        what: &'static str,
        /// What it is.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// No subnet or address is left.
    #[error("{what}: every one is taken")]
    Exhausted {
        /// What was to be had.
        what: String,
    },
    /// An address, port or name is somebody else's.
    #[error("{what} is taken by sandbox {holder}")]
    Taken {
        /// What.
        what: String,
        /// By whom.
        holder: String,
    },
    /// A network is there, and is not as it was asked for.
    #[error("network {name} is there already with {what} {there}, not {wanted}")]
    Different {
        /// The network.
        name: String,
        /// `subnets` or `mtu`.
        what: &'static str,
        /// What it has.
        there: String,
        /// What was asked for.
        wanted: String,
    },
    /// There is no such network.
    #[error("there is no network {name}")]
    NoNetwork {
        /// Its name.
        name: String,
    },
    /// A port of the host cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A record of ours cannot be read or written.
    #[error("cannot {what} the record {path}")]
    Record {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

impl NetError {
    /// The stable name of the error, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kernel { .. } => "E-NET-KERNEL",
            Self::Unsupported { .. } => "E-NET-UNSUPPORTED",
            Self::File { .. } => "E-NET-FILE",
            Self::System { .. } => "E-NET-SYSTEM",
            Self::NoDevice { .. } => "E-NET-NO-DEVICE",
            Self::Device { .. } => "E-NET-DEVICE",
            Self::NoNft => "E-NET-NFT",
            Self::Rules { .. } => "E-NET-RULES",
            Self::Text { .. } => "E-NET-TEXT",
            Self::Exhausted { .. } => "E-NET-FULL",
            Self::Taken { .. } => "E-NET-TAKEN",
            Self::Different { .. } => "E-NET-DIFFERENT",
            Self::NoNetwork { .. } => "E-NET-UNKNOWN",
            Self::Listen { .. } => "E-NET-LISTEN",
            Self::Record { .. } => "E-NET-RECORD",
        }
    }

    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoNft => "install nftables, or use `--net none`".to_owned(),
            Self::Unsupported { option, .. } => {
                format!("use a kernel with {option}, or another kind of endpoint")
            }
            Self::Taken { what, .. } if what.starts_with("port") => {
                "publish another port of the host, or remove that sandbox".to_owned()
            }
            Self::Different { name, .. } => {
                format!("leave the options out to use {name} as it is, or choose another name")
            }
            Self::Listen { .. } => {
                "another program has the port: `ss -ltnup` tells which".to_owned()
            }
            Self::Kernel { .. } | Self::File { .. } if !rustix::process::geteuid().is_root() => {
                "networks of the host need root: use `--net none` or `--net user`".to_owned()
            }
            _ => return None,
        })
    }
}
