//! Kernel modules: those of the boot list, and others when something needs them.
//!
//! Boot loads the modules named in the initrd's `/etc/coracle/modules`, in that order: the list
//! was resolved when the initrd was made, so nothing has to be searched for. Those behind the
//! channel's are loaded while the host already greets us. Whatever is needed
//! later (a file system a share asks for) is found by name through `modules.dep`. The directory
//! of modules stays open by descriptor, which the switch of root does not disturb.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::stat::Mode;
use nix::sys::utsname::uname;

/// The list of modules the boot needs, one path each, relative to the folder of the running
/// kernel's modules; empty lines and lines that begin with `#` mean nothing.
pub const BOOT_LIST: &str = "/etc/coracle/modules";

/// The module that makes the channel, behind which the boot list may be cut in two.
const CHANNEL: &str = "virtio_console";

/// What the boot list names, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BootList {
    /// All that is needed to talk to the host.
    pub channel: Vec<PathBuf>,
    /// The rest, which can be loaded while the host takes notice of us.
    pub others: Vec<PathBuf>,
}

impl BootList {
    /// Reads the list. There need not be one.
    pub fn read() -> Result<Self, ModuleError> {
        match fs::read_to_string(BOOT_LIST) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ModuleError::Read { path: BOOT_LIST.into(), source }),
        }
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut channel: Vec<PathBuf> = lines.map(PathBuf::from).collect();
        let last = channel.iter().position(|file| name_of(file).as_deref() == Some(CHANNEL));
        // Without it the channel is built in, or the list is for other devices: load it all.
        let others = last.map(|last| channel.split_off(last + 1)).unwrap_or_default();
        Self { channel, others }
    }
}

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A list or directory could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `modules.dep` has no such module, and the kernel has none built in that we know of.
    #[error("the kernel module {name} is not among the guest's modules")]
    Unknown {
        /// The module's name.
        name: String,
    },
    /// The kernel refused it.
    #[error("loading the kernel module {}", path.display())]
    Load {
        /// The module's file, relative to the folder of modules.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
}

/// The modules of the running kernel.
#[derive(Debug)]
pub struct Modules {
    directory: OwnedFd,
    /// Name (with underscores) to its file and those it depends on, from `modules.dep`.
    dependencies: HashMap<String, Vec<PathBuf>>,
}

impl Modules {
    /// Opens `/lib/modules/<release>`. A guest without modules is no error: everything may be
    /// built in.
    pub fn open() -> Result<Option<Self>, ModuleError> {
        let release = uname().map(|names| names.release().to_owned()).unwrap_or_default();
        let path = Path::new("/lib/modules").join(release);
        let directory =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
        let directory = match directory {
            Ok(directory) => OwnedFd::from(directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ModuleError::Read { path, source }),
        };
        Ok(Some(Self { directory, dependencies: HashMap::new() }))
    }

    /// Loads `list`. A module that fails is logged and skipped: a VM without its network card is
    /// better than none.
    pub fn load_all(&self, list: &[PathBuf]) {
        for file in list {
            if let Err(error) = self.insert(file) {
                tracing::warn!(error = &error as &dyn std::error::Error, "skipping a module");
            }
        }
    }

    /// Loads the module `name` (hyphen and underscore are the same) and what it depends on.
    pub fn load(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.dependencies.is_empty() {
            self.dependencies = parse_dependencies(&self.read("modules.dep")?);
        }
        let Some(files) = self.dependencies.get(&normal(name)) else {
            return Err(ModuleError::Unknown { name: name.to_owned() });
        };
        files.iter().try_for_each(|file| self.insert(file))
    }

    fn insert(&self, file: &Path) -> Result<(), ModuleError> {
        let failed = |source| ModuleError::Load { path: file.to_owned(), source };
        let flags = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz" | "zst" | "gz") => {
                // MODULE_INIT_COMPRESSED_FILE: the kernel unpacks it, where built to.
                ModuleInitFlags::from_bits_retain(4)
            }
            _ => ModuleInitFlags::empty(),
        };
        let module =
            openat(&self.directory, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed)?;
        match finit_module(module.as_fd(), c"", flags) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn read(&self, name: &str) -> Result<String, ModuleError> {
        let failed = |source| ModuleError::Read { path: name.into(), source };
        let file = openat(&self.directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).map_err(failed)?;
        Ok(text)
    }
}

/// Reads `modules.dep`: a line is `file: dependency...`, the nearest dependency first, so loading
/// goes from the last to the first.
fn parse_dependencies(text: &str) -> HashMap<String, Vec<PathBuf>> {
    let mut modules = HashMap::new();
    for line in text.lines() {
        let Some((file, dependencies)) = line.split_once(':') else { continue };
        let Some(name) = name_of(Path::new(file)) else { continue };
        let mut files: Vec<PathBuf> =
            dependencies.split_whitespace().rev().map(PathBuf::from).collect();
        files.push(PathBuf::from(file));
        modules.insert(name, files);
    }
    modules
}

/// The module's name, from that of its file.
fn name_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    Some(normal(name.split('.').next().unwrap_or(name)))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_after_what_it_depends_on() {
        let text = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
                    kernel/drivers/scsi/virtio_scsi.ko.xz:\n";
        let modules = parse_dependencies(text);
        let expected: Vec<PathBuf> =
            ["kernel/fs/netfs/netfs.ko", "kernel/net/9p/9pnet.ko", "kernel/fs/9p/9p.ko"]
                .map(PathBuf::from)
                .into();
        assert_eq!(modules["9p"], expected);
        assert!(modules.contains_key("virtio_scsi"));
    }

    #[test]
    fn the_boot_list_is_cut_behind_the_channel() {
        let list = BootList::parse(
            "# comment\n/lib/virtio_pci.ko\n\n/lib/virtio_console.ko\n/lib/sd_mod.ko\n",
        );
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(list.channel, paths(&["/lib/virtio_pci.ko", "/lib/virtio_console.ko"]));
        assert_eq!(list.others, paths(&["/lib/sd_mod.ko"]));
        let without = BootList::parse("/lib/sd_mod.ko\n");
        assert_eq!((without.channel, without.others), (paths(&["/lib/sd_mod.ko"]), vec![]));
    }

    #[test]
    fn hyphens_and_underscores_name_the_same_module() {
        let modules = parse_dependencies("kernel/nd-virtio.ko:\n");
        assert!(modules.contains_key(&normal("nd_virtio")));
        assert!(modules.contains_key(&normal("nd-virtio")));
    }
}
