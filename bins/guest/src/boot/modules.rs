//! Kernel modules: those of the boot list, and others when something needs them.
//!
//! Boot loads the modules named in the initrd's `/etc/coracle/modules`, in that order: the list
//! was resolved when the initrd was made, so nothing has to be searched for. Whatever is needed
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

    /// Loads everything on the boot list. A module that fails is logged and skipped: a VM without
    /// its network card is better than none.
    pub fn load_boot_list(&self) -> Result<(), ModuleError> {
        let list = match fs::read_to_string(BOOT_LIST) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ModuleError::Read { path: BOOT_LIST.into(), source }),
        };
        for line in list.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(error) = self.insert(Path::new(line)) {
                tracing::warn!(error = &error as &dyn std::error::Error, "skipping a module");
            }
        }
        Ok(())
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
        let Some(name) = Path::new(file).file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = name.split('.').next().unwrap_or(name);
        let mut files: Vec<PathBuf> =
            dependencies.split_whitespace().rev().map(PathBuf::from).collect();
        files.push(PathBuf::from(file));
        modules.insert(normal(name), files);
    }
    modules
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
    fn hyphens_and_underscores_name_the_same_module() {
        let modules = parse_dependencies("kernel/nd-virtio.ko:\n");
        assert!(modules.contains_key(&normal("nd_virtio")));
        assert!(modules.contains_key(&normal("nd-virtio")));
    }
}
