//! `coracle disk|pmem|share|pipe|device add|rm|ls`: what is plugged into a sandbox that runs.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use coracle_engine::client::Client;
use coracle_engine::plug::{Kind, PlugSpec, Plugged, ShareType};
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::columns;
use crate::life::block_on;

/// How a share is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Served {
    /// By virtiofsd: fast.
    Virtiofs,
    /// By our 9P server: slower, and nothing but a stream between.
    #[value(name = "9p")]
    Plan9,
}

/// The verbs of `disk`.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Attach a disk image or block device; with DST it is mounted there in the containers.
    #[command(
        after_help = "A DST in /dev is the disk itself, as a block device, and not what is on it.\n\n\
        EXAMPLES:\n  coracle disk add web data.img /srv/data\n  \
        coracle disk add web raw.img /dev/data\n  \
        coracle disk add web /dev/vg/lv --fs xfs /srv/data:ro"
    )]
    Add {
        /// The sandbox.
        sandbox: String,
        /// The image or block device on the host.
        src: String,
        /// Where containers see it; `:ro` at its end refuses writes.
        dst: Option<String>,
        /// What is on it; by default it is looked at.
        #[arg(long, value_name = "FS", value_parser = ["ext4", "xfs", "erofs"])]
        fs: Option<String>,
        /// How the image is laid out; by default its name tells.
        #[arg(long = "type", value_name = "TYPE", value_parser = ["raw", "qcow2", "vhd", "vhdx"])]
        layout: Option<String>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// How the answer is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Take a disk out.
    Rm(RmArgs),
    /// List the disks.
    Ls(LsArgs),
}

/// The verbs of `share`.
#[derive(Debug, Subcommand)]
pub enum ShareVerb {
    /// Share a directory or file of the host.
    #[command(after_help = "EXAMPLES:\n  coracle share add web ~/src /src\n  \
        coracle share add web --type 9p /etc/ssl /etc/ssl:ro")]
    Add {
        /// The sandbox.
        sandbox: String,
        /// The directory or file on the host.
        src: String,
        /// Where containers see it; `:ro` at its end refuses writes.
        dst: String,
        /// How it is served.
        #[arg(long = "type", value_enum, default_value = "virtiofs")]
        served: Served,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// How the answer is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Take a share out.
    Rm(RmArgs),
    /// List the shares.
    Ls(LsArgs),
}

/// The verbs of `pmem` and `pipe`.
#[derive(Debug, Subcommand)]
pub enum PlainVerb {
    /// Plug it in.
    Add {
        /// The sandbox.
        sandbox: String,
        /// Its path on the host.
        src: String,
        /// Where containers see it.
        dst: String,
        /// How the answer is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Take it out.
    Rm(RmArgs),
    /// List them.
    Ls(LsArgs),
}

/// The verbs of `device`.
#[derive(Debug, Subcommand)]
pub enum DeviceVerb {
    /// Hand a PCI device over.
    #[command(after_help = "SRC is one of:\n  \
        0000:3b:00.0             a device of the host, by VFIO (run with --physical-memory)\n  \
        /sys/bus/mdev/devices/U  a mediated device of the host, likewise\n  \
        vhost-user-blk:SOCKET    a disk another process serves; with DST it is mounted there\n  \
        vhost-user-scsi:SOCKET   a SCSI controller another process serves\n  \
        emulated:edu             QEMU's device for teaching\n\n\
        EXAMPLES:\n  coracle device add web 0000:3b:00.0\n  \
        coracle device add web vhost-user-blk:/run/disk.sock /srv/data:ro")]
    Add {
        /// The sandbox.
        sandbox: String,
        /// Which device.
        src: String,
        /// Where containers see a disk; `:ro` at its end refuses writes.
        dst: Option<String>,
        /// How the answer is written.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Take it back.
    Rm(RmArgs),
    /// List them.
    Ls(LsArgs),
}

/// `rm` of all kinds.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The sandbox.
    sandbox: String,
    /// What was given as DST, or as SRC.
    #[arg(value_name = "DST|SRC")]
    key: String,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// `ls` of all kinds.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The sandbox.
    sandbox: String,
    /// How the list is written.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// One verb, whatever the kind.
#[derive(Debug)]
pub enum Verb {
    /// Plug in.
    Add(String, PlugSpec, Format),
    /// Take out.
    Rm(Kind, RmArgs),
    /// List.
    Ls(Kind, LsArgs),
}

impl Verb {
    /// How errors are written.
    pub fn format(&self) -> Format {
        match self {
            Self::Add(_, _, format) => *format,
            Self::Rm(_, args) => args.format,
            Self::Ls(_, args) => args.format,
        }
    }
}

impl From<DiskVerb> for Verb {
    fn from(verb: DiskVerb) -> Self {
        match verb {
            DiskVerb::Add { sandbox, src, dst, fs, layout, read_only, format } => {
                let (destination, is_ro) = dst.map(mode).unzip();
                let read_only = read_only || is_ro.unwrap_or(false);
                let plain = PlugSpec::new(Kind::Disk, absolute(&src));
                let spec =
                    PlugSpec { destination, read_only, filesystem: fs, format: layout, ..plain };
                Self::Add(sandbox, spec, format)
            }
            DiskVerb::Rm(args) => Self::Rm(Kind::Disk, args),
            DiskVerb::Ls(args) => Self::Ls(Kind::Disk, args),
        }
    }
}

impl From<ShareVerb> for Verb {
    fn from(verb: ShareVerb) -> Self {
        match verb {
            ShareVerb::Add { sandbox, src, dst, served, read_only, format } => {
                let (destination, is_ro) = mode(dst);
                let share_type = match served {
                    Served::Virtiofs => ShareType::VirtioFs,
                    Served::Plan9 => ShareType::Plan9,
                };
                let spec = PlugSpec {
                    destination: Some(destination),
                    read_only: read_only || is_ro,
                    share_type,
                    ..PlugSpec::new(Kind::Share, absolute(&src))
                };
                Self::Add(sandbox, spec, format)
            }
            ShareVerb::Rm(args) => Self::Rm(Kind::Share, args),
            ShareVerb::Ls(args) => Self::Ls(Kind::Share, args),
        }
    }
}

impl From<DeviceVerb> for Verb {
    fn from(verb: DeviceVerb) -> Self {
        match verb {
            DeviceVerb::Add { sandbox, src, dst, format } => {
                let (destination, is_ro) = dst.map(mode).unzip();
                let read_only = is_ro.unwrap_or(false);
                let plain = PlugSpec::new(Kind::Device, device_path(&src));
                Self::Add(sandbox, PlugSpec { destination, read_only, ..plain }, format)
            }
            DeviceVerb::Rm(args) => Self::Rm(Kind::Device, args),
            DeviceVerb::Ls(args) => Self::Ls(Kind::Device, args),
        }
    }
}

impl Verb {
    /// A verb of `pmem` or `pipe`.
    pub fn plain(kind: Kind, verb: PlainVerb) -> Self {
        match verb {
            PlainVerb::Add { sandbox, src, dst, format } => {
                let spec =
                    PlugSpec { destination: Some(dst), ..PlugSpec::new(kind, absolute(&src)) };
                Self::Add(sandbox, spec, format)
            }
            PlainVerb::Rm(args) => Self::Rm(kind, args),
            PlainVerb::Ls(args) => Self::Ls(kind, args),
        }
    }
}

/// Splits `:ro` off a destination.
fn mode(dst: String) -> (String, bool) {
    match dst.strip_suffix(":ro") {
        Some(path) => (path.to_owned(), true),
        None => (dst.strip_suffix(":rw").map(str::to_owned).unwrap_or(dst), false),
    }
}

/// The monitor has a working directory of its own.
pub fn absolute(path: &str) -> String {
    let absolute = std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    absolute.unwrap_or_else(|_| path.to_owned())
}

/// A device's socket is a path, its address is none.
pub fn device_path(src: &str) -> String {
    match src.split_once(':') {
        Some((kind @ ("vhost-user-blk" | "vhost-user-scsi"), socket)) => {
            format!("{kind}:{}", absolute(socket))
        }
        Some(_) | None => src.to_owned(),
    }
}

/// Does it.
pub fn run(verb: Verb, root: &Root) -> Result<ExitCode> {
    match verb {
        Verb::Add(sandbox, spec, format) => {
            let client = Client::find(root, &sandbox)?;
            let plugged = block_on(async { Ok(client.plug(&spec).await?) })?;
            match format {
                Format::Json => println!("{}", serde_json::to_string(&plugged)?),
                Format::Text => println!("{}", key(&plugged)),
            }
        }
        Verb::Rm(kind, args) => {
            let client = Client::find(root, &args.sandbox)?;
            let gone = block_on(async {
                match client.unplug(kind, &args.key).await {
                    // A source may have been given as it looks from here.
                    Err(error) if error.code() == "E-PLUG-UNKNOWN" => {
                        Ok(client.unplug(kind, &absolute(&args.key)).await.map_err(|_| error)?)
                    }
                    other => Ok(other?),
                }
            })?;
            println!("{}", key(&gone));
        }
        Verb::Ls(kind, args) => {
            let client = Client::find(root, &args.sandbox)?;
            let all = block_on(async { Ok(client.plugs().await?) })?;
            let ours: Vec<Plugged> =
                all.into_iter().filter(|plugged| plugged.spec.kind == kind).collect();
            let mut out = std::io::stdout().lock();
            match args.format {
                Format::Json => writeln!(out, "{}", serde_json::to_string(&ours)?)?,
                Format::Text => print_table(&mut out, &ours).context("cannot print the list")?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a thing answers to.
fn key(plugged: &Plugged) -> &str {
    plugged.spec.destination.as_deref().unwrap_or(&plugged.spec.source)
}

fn print_table(out: &mut impl Write, plugs: &[Plugged]) -> std::io::Result<()> {
    let rows = plugs.iter().map(|plugged| {
        let mode = if plugged.spec.read_only { "ro" } else { "rw" };
        let destination = plugged.spec.destination.as_deref().unwrap_or("-");
        [
            destination,
            plugged.spec.source.as_str(),
            mode,
            plugged.slot.as_deref().unwrap_or("-"),
            plugged.state.as_str(),
        ]
    });
    let heading = ["DESTINATION", "SOURCE", "MODE", "SLOT", "STATE"];
    let rows: Vec<[&str; 5]> = std::iter::once(heading).chain(rows).collect();
    columns::print(out, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_may_end_in_its_mode() {
        assert_eq!(mode("/a:ro".into()), ("/a".into(), true));
        assert_eq!(mode("/a:rw".into()), ("/a".into(), false));
        assert_eq!(mode("/a".into()), ("/a".into(), false));
    }
}
