//! What is asked for: a sandbox and a command in it. Plain data, checked here.

use std::path::PathBuf;

use coracle_image::ImageConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use coracle_uvm::Accel;

use crate::error::Error;
use crate::network::AttachRequest;
use crate::plug::{Kind, PlugSpec, ShareType};
use crate::settings::Tuning;

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RootFs {
    /// The busybox root that came with the guest.
    BuiltIn,
    /// A directory, a tar, an OCI layout or archive.
    At(PathBuf),
}

impl RootFs {
    /// As it is shown: a path, or `built-in`.
    pub fn shown(&self) -> String {
        match self {
            Self::BuiltIn => "built-in".to_owned(),
            Self::At(path) => path.display().to_string(),
        }
    }
}

/// A sandbox as the user wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its name; a random one if none is given.
    pub name: Option<String>,
    /// Memory of the VM in MiB; less than kernel and initrd need is refused.
    pub memory_mib: u64,
    /// Virtual processors, at least one.
    pub vcpus: u32,
    /// Virtual processors it can be given while it runs; none: no more than it begins with.
    #[serde(default)]
    pub max_vcpus: Option<u32>,
    /// Memory in MiB it can be given while it runs; none: no more than it begins with.
    #[serde(default)]
    pub max_memory_mib: Option<u64>,
    /// What executes the guest's code.
    pub accel: Accel,
    /// A kernel (ELF `vmlinux`) instead of the guest's own.
    pub kernel: Option<PathBuf>,
    /// The root file system.
    pub rootfs: RootFs,
    /// Keep writes in a disk of this many MiB instead of the VM's memory.
    pub scratch_mib: Option<u64>,
    /// No writes to the root file system.
    pub read_only: bool,
    /// What is plugged in before the command starts, in this order.
    pub plugs: Vec<PlugSpec>,
    /// Leave room for more to be plugged in later.
    pub hotplug: bool,
    /// Take all of the VM's memory from the host at once: devices of the host need that.
    #[serde(default)]
    pub physical_memory: bool,
    /// The networks it is on from its start.
    #[serde(default)]
    pub networks: Vec<AttachRequest>,
    /// What settings change beyond these options.
    #[serde(default)]
    pub tuning: Tuning,
    /// A `coracle` program, run for what shall be a process of its own. None: threads of this one.
    pub helper: Option<PathBuf>,
}

impl SandboxSpec {
    /// Whether the VM needs a SCSI controller.
    pub(crate) fn needs_scsi(&self) -> bool {
        self.hotplug || self.plugs.iter().any(|plug| plug.kind == Kind::Disk)
    }

    /// Whether the VM needs room for persistent memory.
    pub(crate) fn needs_pmem(&self) -> bool {
        self.hotplug || self.plugs.iter().any(|plug| plug.kind == Kind::Pmem)
    }

    /// Whether a server of the host's must see the VM's memory.
    pub(crate) fn needs_shared_memory(&self) -> bool {
        let by_virtiofs =
            |plug: &PlugSpec| plug.kind == Kind::Share && plug.share_type == ShareType::VirtioFs;
        self.hotplug || self.plugs.iter().any(by_virtiofs) || self.needs_vpci()
    }

    /// Whether PCI devices can be assigned.
    pub(crate) fn needs_vpci(&self) -> bool {
        self.hotplug || self.plugs.iter().any(|plug| plug.kind == Kind::Device)
    }

    /// Whether all of the VM's memory must be there from the start.
    pub(crate) fn needs_physical_memory(&self) -> bool {
        self.physical_memory || self.plugs.iter().any(PlugSpec::pins_memory)
    }

    /// Refuses what cannot work, by name.
    ///
    /// # Errors
    /// A name that is no file name; a disk where none may be.
    pub fn check(&self) -> Result<(), Error> {
        self.plugs.iter().try_for_each(|plug| self.tuning.admits(plug))?;
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        Ok(())
    }
}

/// Names are file names and process names: letters, digits, `_`, `.`, `-`, at most 64,
/// the first a letter or a digit.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(Error::BadName { name: name.to_owned() })
}

/// A command as the user wants it run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Command {
    /// Program and arguments, or arguments of the entrypoint; may be empty if the
    /// image says what to run.
    pub args: Vec<String>,
    /// Instead of the image's entrypoint.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, after the image's.
    pub env: Vec<String>,
    /// Instead of the image's working directory.
    pub cwd: Option<String>,
    /// Instead of the image's user.
    pub user: Option<String>,
    /// Instead of the sandbox's name.
    pub hostname: Option<String>,
    /// Is there anything to read on its standard input?
    pub stdin: bool,
    /// A terminal, of this width and height if they are known.
    #[serde(default, with = "terminal")]
    #[schemars(with = "Option<(u16, u16)>")]
    pub terminal: Option<Option<(u16, u16)>>,
}

/// A terminal in JSON: null, or its width and height, which are 0 if they are not known.
mod terminal {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Terminal = Option<Option<(u16, u16)>>;

    pub(super) fn serialize<S: Serializer>(it: &Terminal, to: S) -> Result<S::Ok, S::Error> {
        it.map(Option::unwrap_or_default).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Terminal, D::Error> {
        let size = Option::<(u16, u16)>::deserialize(from)?;
        Ok(size.map(|size| Some(size).filter(|size| *size != (0, 0))))
    }
}

/// A command with the image's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// The image's variables, then the user's.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// User, empty for root.
    pub user: String,
}

impl Command {
    /// Fills in what the image says, by the rules of OCI images: arguments replace the
    /// image's `Cmd`, an entrypoint of the user's drops both of the image's.
    ///
    /// # Errors
    /// Neither says what to run, or the working directory is not absolute.
    pub fn resolve(&self, image: &ImageConfig) -> Result<Resolved, Error> {
        let mut args = match &self.entrypoint {
            Some(program) => vec![program.clone()],
            None => image.entrypoint.clone(),
        };
        let use_default = self.args.is_empty() && self.entrypoint.is_none();
        args.extend(if use_default { image.cmd.clone() } else { self.args.clone() });
        if args.is_empty() {
            return Err(Error::NoCommand);
        }
        let cwd = self.cwd.clone().or_else(|| image.workdir.clone()).unwrap_or_default();
        let cwd = if cwd.is_empty() { "/".to_owned() } else { cwd };
        if !cwd.starts_with('/') {
            return Err(Error::RelativeDirectory { path: cwd });
        }
        let env = image.env.iter().chain(&self.env).cloned().collect();
        let user = self.user.clone().or_else(|| image.user.clone()).unwrap_or_default();
        Ok(Resolved { args, env, cwd, user })
    }

    /// Fills in, for a further command, what the container's own has: environment, directory, user.
    ///
    /// # Errors
    /// There is nothing to run, or the working directory is not absolute.
    pub fn resolve_beside(&self, init: &Resolved) -> Result<Resolved, Error> {
        if self.args.is_empty() {
            return Err(Error::NoCommand);
        }
        let cwd = self.cwd.clone().unwrap_or_else(|| init.cwd.clone());
        if !cwd.starts_with('/') {
            return Err(Error::RelativeDirectory { path: cwd });
        }
        let env = init.env.iter().chain(&self.env).cloned().collect();
        let user = self.user.clone().unwrap_or_else(|| init.user.clone());
        Ok(Resolved { args: self.args.clone(), env, cwd, user })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words("entry -x"),
            cmd: words("default"),
            env: words("A=image"),
            workdir: Some("/srv".into()),
            user: Some("www".into()),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn an_image_says_what_to_run_when_nobody_else_does() {
        let resolved = Command::default().resolve(&image()).unwrap();
        assert_eq!(resolved.args, words("entry -x default"));
        assert_eq!((resolved.cwd.as_str(), resolved.user.as_str()), ("/srv", "www"));
    }

    #[test]
    fn arguments_replace_the_images_command() {
        let command = Command { args: words("a b"), env: words("A=mine"), ..Command::default() };
        let resolved = command.resolve(&image()).unwrap();
        assert_eq!(resolved.args, words("entry -x a b"));
        assert_eq!(resolved.env, words("A=image A=mine"));
    }

    #[test]
    fn an_entrypoint_of_the_users_drops_the_images_command() {
        let command = Command { entrypoint: Some("sh".into()), ..Command::default() };
        assert_eq!(command.resolve(&image()).unwrap().args, words("sh"));
    }

    #[test]
    fn a_further_command_has_what_the_first_has_unless_it_says_otherwise() {
        let init = Command::default().resolve(&image()).unwrap();
        let command = Command { args: words("ls"), env: words("A=mine"), ..Command::default() };
        let resolved = command.resolve_beside(&init).unwrap();
        assert_eq!((resolved.args, resolved.env), (words("ls"), words("A=image A=mine")));
        assert_eq!((resolved.cwd.as_str(), resolved.user.as_str()), ("/srv", "www"));
        assert!(matches!(Command::default().resolve_beside(&init), Err(Error::NoCommand)));
    }

    #[test]
    fn a_terminal_of_unknown_size_is_a_terminal_also_in_json() {
        for terminal in [None, Some(None), Some(Some((80, 24)))] {
            let text = serde_json::to_string(&Command { terminal, ..Command::default() }).unwrap();
            let read: Command = serde_json::from_str(&text).unwrap();
            assert_eq!(read.terminal, terminal, "{text}");
        }
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        let nothing = Command::default().resolve(&ImageConfig::default());
        assert!(matches!(nothing, Err(Error::NoCommand)));
    }

    #[test]
    fn names_that_could_escape_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a b", "ä", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "A-1", "web.1_x", &"x".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
