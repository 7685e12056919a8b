//! What the command line looks like; no behaviour.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Containers in virtual machines of their own.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    about,
    after_help = "EXAMPLES:\n  \
        coracle run -- uname -a             a command in a VM, on the built-in root\n  \
        coracle run -it ./rootfs sh         a shell on a root directory of yours\n  \
        coracle run image.tar -- env        an OCI archive or a tar of a root\n  \
        coracle run -d --name web; coracle disk add web data.img /srv\n  \
        coracle doctor                      what this host lacks, and how to mend it\n\n\
        EXIT CODES: the workload's own; 125 coracle failed, 126 the command is not \
        executable, 127 it was not found, 128+n it died of signal n."
)]
pub struct Cli {
    /// Keep data, cache and run directories below DIR.
    #[arg(long, global = true, value_name = "DIR", env = "CORACLE_ROOT")]
    pub root: Option<PathBuf>,
    /// How much to say on stderr about what happens (a tracing filter, such as `debug`).
    #[arg(long, global = true, value_name = "FILTER", env = "CORACLE_LOG", default_value = "warn")]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a container in a VM of its own.
    Run(Box<RunArgs>),
    /// Write a sandbox down, to be started later; takes what `run --detach` takes.
    Create(Box<RunArgs>),
    /// Start a sandbox that was created, or that has ended.
    Start(crate::detached::StartArgs),
    /// Run another command in a sandbox that runs.
    Exec(Box<crate::exec::ExecArgs>),
    /// List the sandboxes.
    #[command(visible_alias = "ps")]
    Ls(crate::life::LsArgs),
    /// Show everything there is to say about a sandbox, as JSON.
    Inspect(crate::life::InspectArgs),
    /// Print what a detached sandbox's command has written.
    Logs(crate::logs::LogsArgs),
    /// Take up sandboxes that have no monitor.
    Recover(crate::recover::RecoverArgs),
    /// Find what is left on the host and belongs to nobody, and take it away.
    Gc(crate::gc::GcArgs),
    /// Say whether everything that is written down is whole and true, and make it so.
    Fsck(crate::fsck::FsckArgs),
    /// Wait until a sandbox's command ends, and end as it did.
    Wait(crate::life::OneArgs),
    /// Watch a detached sandbox's command until it ends, and end as it did.
    Attach(crate::attach::AttachArgs),
    /// Say what has happened to sandboxes.
    Events(crate::events::EventsArgs),
    /// Copy files to and from a sandbox that runs.
    Cp(crate::cp::CpArgs),
    /// Say what can be set, and what the configuration files say.
    Settings(crate::settings::SettingsArgs),
    /// Say what an error's code means.
    Explain(crate::explain::ExplainArgs),
    /// Print the OpenAPI document of what a sandbox's monitor answers.
    #[command(after_help = "EXAMPLES:\n  \
        coracle api > openapi.json\n  \
        curl --unix-socket /run/coracle/web/api.sock http://web/v1/sandbox\n\n\
        The socket is in the sandbox's run directory, `run/SANDBOX` below --root if that is given. \
        Whoever may open it may do everything with the sandbox: it is its owner's alone.")]
    Api,
    /// Put everything there is to know of a sandbox into one archive.
    Dump(crate::dump::DumpArgs),
    /// Show what sandboxes use, over and over.
    Top(crate::top::TopArgs),
    /// Send a sandbox's command a signal.
    Kill(crate::life::KillArgs),
    /// Show what sandboxes use.
    Stats(crate::resources::StatsArgs),
    /// Give a sandbox that runs more or less of something.
    Update(Box<crate::resources::UpdateArgs>),
    /// Stop a sandbox's processors; memory and devices stay.
    Pause(crate::resources::PauseArgs),
    /// Let a paused sandbox go on.
    Resume(crate::resources::PauseArgs),
    /// End a sandbox's command and its VM; what it left to say stays until `rm`.
    Stop(crate::life::StopArgs),
    /// Remove a sandbox that has ended.
    Rm(crate::life::RmArgs),
    /// Attach disks to a sandbox that runs, and take them out.
    #[command(subcommand)]
    Disk(crate::plug::DiskVerb),
    /// Map files into a sandbox's memory, read-only, and take them out.
    #[command(subcommand)]
    Pmem(crate::plug::PlainVerb),
    /// Share directories and files with a sandbox that runs.
    #[command(subcommand)]
    Share(crate::plug::ShareVerb),
    /// Make sockets of the host appear in a sandbox that runs.
    #[command(subcommand)]
    Pipe(crate::plug::PlainVerb),
    /// Hand PCI devices to a sandbox that runs, and take them back.
    #[command(subcommand)]
    Device(crate::plug::DeviceVerb),
    /// Put sandboxes on networks, take them off, show who is on which.
    #[command(subcommand)]
    Net(crate::net::NetVerb),
    /// Make or show the guest's kernel, initrd and root file systems.
    Guest(crate::guest::GuestArgs),
    /// Say what this host can do and what it lacks.
    Doctor(crate::doctor::DoctorArgs),
    /// Show, judge and carry over the states of sandboxes, ours and Kata's.
    State(crate::state::StateArgs),
    /// Print a completion script for a shell; it knows the sandboxes there are.
    #[command(after_help = "EXAMPLES:\n  \
        source <(coracle completion bash)\n  \
        coracle completion fish > ~/.config/fish/completions/coracle.fish")]
    Completion {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Serve one 9P share (started by coracle itself).
    #[command(hide = true)]
    Plan9(crate::plan9::Plan9Args),
    /// Own one detached sandbox (started by coracle itself).
    #[command(hide = true)]
    Monitor(crate::monitor::MonitorArgs),
    /// Serve the names of one network (started by coracle itself).
    #[command(hide = true)]
    NetNames(crate::net::NamesArgs),
    /// Forward the ports of one sandbox (started by coracle itself).
    #[command(hide = true)]
    NetPorts(crate::net::PortsArgs),
    /// Carry the channel of one VM (started by coracle itself).
    #[command(hide = true)]
    Keeper(crate::keeper::KeeperArgs),
}

/// How errors and timelines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Which accelerator the VM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM if it proves to be fast, else TCG with a word on stderr.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// QEMU's own emulation, anywhere.
    Tcg,
}

impl From<Accel> for coracle_engine::Accel {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Kvm => Self::Kvm,
            Accel::Tcg => Self::Tcg,
        }
    }
}

/// `coracle run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "coracle run [OPTIONS] [ROOTFS] [--] [COMMAND]...",
    after_help = "ROOTFS is a directory, a tar of a root file system (plain, gzip or zstd), an OCI \
        layout directory or an OCI archive; without it the built-in busybox root is used. The \
        source is never changed: writes go to a layer that ends with the container.\n\n\
        EXAMPLES:\n  \
        coracle run -- uname -r\n  \
        tar c . | coracle run -i -- tar t\n  \
        coracle run -it debian/ bash\n  \
        coracle run --memory 256m --cpus 2 -e MODE=fast app.oci.tar\n  \
        coracle run -v ~/src:/src:ro debian/ make -C /src\n  \
        coracle run -d -p 8080:80 --name www -- httpd -f -p 80\n  \
        coracle run --egress 10.0.0.0/8 --net backend debian/ ./job\n  \
        coracle run -d --name web image.tar; coracle exec web -- ps\n  \
        coracle run -d --in web --name db db.tar; coracle logs -f web/db\n  \
        coracle run --timeline -- true"
)]
pub struct RunArgs {
    /// Root file system and command; a `--` before the command says there is no ROOTFS.
    #[arg(
        value_name = "ROOTFS",
        trailing_var_arg = true,
        num_args = 0..
    )]
    pub words: Vec<String>,
    /// Leave the command running and print the sandbox's name.
    #[arg(short, long)]
    pub detach: bool,
    /// Do not make a sandbox: run the command in a container of its own in one that runs.
    #[arg(long = "in", value_name = "SANDBOX")]
    pub sandbox: Option<String>,
    /// Pass standard input to the command; with --detach: keep it open for `coracle attach -i`.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without `=VALUE` it is taken from here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory in the container.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run as: name or uid, optionally `:group`.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Memory of the VM, with k, m or g; 1g if neither this nor a setting says.
    #[arg(long, value_name = "SIZE", env = "CORACLE_MEMORY", value_parser = crate::size::parse_mib)]
    pub memory: Option<u64>,
    /// Virtual CPUs of the VM; one if neither this nor a setting says.
    #[arg(long, value_name = "N", env = "CORACLE_CPUS", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: Option<u32>,
    /// Virtual CPUs that `coracle update` can give the VM; no more than --cpus if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub max_cpus: Option<u32>,
    /// Memory that `coracle update` can give the VM; no more than --memory if not given.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_mib)]
    pub max_memory: Option<u64>,
    /// Name of the sandbox, or with --in of the container; a random one if not given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Host name in the container; the sandbox's name if not given.
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Network: `none`, NAME[,subnet=CIDR]...[,mtu=BYTES], `user`, `ns:PATH` or `cni:NETWORK`.
    #[arg(long, value_name = "NETWORK", env = "CORACLE_NET")]
    pub net: Option<String>,
    /// What the sandbox has of its network.
    #[command(flatten)]
    pub network: crate::net::NetworkOptions,
    /// With --detach: start the command again when it has ended: `no`, `on-failure[:TIMES]`, `always`,
    /// `unless-stopped`.
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: coracle_engine::restart::Policy,
    /// Whether the command is well.
    #[command(flatten)]
    pub health: crate::health::HealthOptions,
    /// What is kept of what a detached command writes.
    #[command(flatten)]
    pub log: crate::logs::LogOptions,
    /// Remove the sandbox when the command ends; without --detach that is always so.
    #[arg(long)]
    pub rm: bool,
    /// Share a directory or file of the host (virtio-fs).
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub volume: Vec<String>,
    /// The same, served by 9P.
    #[arg(long, value_name = "SRC:DST[:ro]")]
    pub share: Vec<String>,
    /// Attach a disk image or block device and mount it at DST; in /dev it is a block device.
    #[arg(long, value_name = "SRC:DST[:ro]")]
    pub disk: Vec<String>,
    /// Map a file into the VM's memory and mount it at DST, read-only.
    #[arg(long, value_name = "SRC:DST")]
    pub pmem: Vec<String>,
    /// Make a unix socket of the host appear at DST.
    #[arg(long, value_name = "SRC:DST")]
    pub pipe: Vec<String>,
    /// Hand a PCI device over: an address, or what `coracle device add --help` names.
    #[arg(long, value_name = "SRC[:DST]")]
    pub device: Vec<String>,
    /// Take all of the VM's memory at once, so that devices of the host can be added later.
    #[arg(long)]
    pub physical_memory: bool,
    /// Mount the root file system read-only.
    #[arg(long)]
    pub read_only: bool,
    /// Keep writes in a disk file of this size instead of the VM's memory.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_mib)]
    pub scratch: Option<u64>,
    /// Set a member of Kata's HypervisorConfig or SandboxConfig, as `HugePages=true`; see
    /// `coracle settings`.
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// What executes the guest's code.
    #[arg(long, value_enum, default_value = "auto", env = "CORACLE_ACCEL")]
    pub accel: Accel,
    /// Boot this kernel (an ELF vmlinux) instead of the guest's own.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Ignore the image's entrypoint and run this instead.
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Keys that leave a terminal without ending the command.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    /// Print on stderr when each phase was reached.
    #[arg(long)]
    pub timeline: bool,
    /// How timeline and errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Splits the words of `run` into root file system and command.
///
/// `run -- CMD` has no root file system; in `run R -- CMD` and `run R CMD` it is the
/// first word. `swallowed` says that a `--` stood before all words.
pub fn split_words(words: &[String], swallowed: bool) -> (Option<&str>, &[String]) {
    match words {
        command if swallowed => (None, command),
        [] => (None, &[]),
        [rootfs, dashes, command @ ..] if dashes == "--" => (Some(rootfs), command),
        [rootfs, command @ ..] => (Some(rootfs), command),
    }
}

/// Did a `--` stand before the words of `run`? clap swallows it there, so the raw
/// arguments decide; the words are the last of them.
pub fn dashes_swallowed(raw: &[OsString], words: usize) -> bool {
    let before = raw.len().checked_sub(words + 1);
    before.and_then(|at| raw.get(at)).is_some_and(|word| word == "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn split(line: &str) -> (Option<String>, Vec<String>) {
        let raw: Vec<OsString> = words(line).into_iter().map(OsString::from).collect();
        let Command::Run(args) = Cli::try_parse_from(&raw).unwrap().command else { panic!() };
        let (rootfs, command) = split_words(&args.words, dashes_swallowed(&raw, args.words.len()));
        (rootfs.map(str::to_owned), command.to_vec())
    }

    #[test]
    fn dashes_first_mean_the_built_in_root() {
        assert_eq!(split("coracle run -- uname -r"), (None, words("uname -r")));
        assert_eq!(split("coracle run -i -- cat -- x"), (None, words("cat -- x")));
    }

    #[test]
    fn without_dashes_first_the_first_word_is_the_root() {
        assert_eq!(split("coracle run dir sh -i"), (Some("dir".into()), words("sh -i")));
        assert_eq!(split("coracle run -t dir -- sh -c x"), (Some("dir".into()), words("sh -c x")));
        assert_eq!(split("coracle run dir -- -- x"), (Some("dir".into()), words("-- x")));
    }

    #[test]
    fn an_unknown_option_is_not_taken_for_a_root() {
        assert!(Cli::try_parse_from(["coracle", "run", "--bogus", "x"]).is_err());
    }
}
