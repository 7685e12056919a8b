//! Finding a kernel's modules and the order to load them in.
//!
//! `modules.dep`, which depmod writes, names for each module the files it
//! needs; `modules.builtin` lists what is in the kernel already. From a list
//! of module names we make the list of files in an order in which each can be
//! loaded when its turn comes. Names are compared as the kernel does, with `-`
//! and `_` the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::payload::{Compression, PayloadError};

/// No module expands to more than this.
const MAX_MODULE: usize = 64 << 20;

/// Modules that ask the kernel's crypto layer for a driver by name when they are loaded.
/// modprobe would bring it in on the way; nobody does that in the guest, so it comes first.
/// (depmod knows these as soft dependencies, by alias and with no choice made.)
const COMPANIONS: [(&str, &str); 3] =
    [("libcrc32c", "crc32c_generic"), ("jbd2", "crc32c_generic"), ("ext4", "crc32c_generic")];

/// Why modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The directory is of another kernel.
    #[error("there is no directory for the kernel's release {release}")]
    WrongRelease {
        /// `uname -r` of the kernel.
        release: String,
    },
    /// depmod has not been run, or the directory is something else.
    #[error("cannot read {path} (a package taken apart by hand needs `depmod -b DIR {release}`)")]
    Index {
        /// The file that is missing.
        path: PathBuf,
        /// `uname -r` of the kernel.
        release: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line of `modules.dep` is not `FILE: FILE...`.
    #[error("line {line} of modules.dep names no module")]
    Malformed {
        /// The line's number, from 1.
        line: usize,
    },
    /// A module the guest cannot do without is neither a file nor built in.
    #[error("the kernel has no module {name}, which the guest needs")]
    Missing {
        /// The module's name.
        name: String,
    },
    /// A module names a file that `modules.dep` does not know.
    #[error("module {name} needs {dependency}, which modules.dep does not know")]
    MissingDependency {
        /// The module's name.
        name: String,
        /// The file it needs.
        dependency: String,
    },
    /// Two modules need each other.
    #[error("module {name} needs itself")]
    Cycle {
        /// One module of the circle.
        name: String,
    },
    /// A module's file cannot be read.
    #[error("cannot read module {path}")]
    Read {
        /// The module's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A compressed module does not expand.
    #[error("cannot expand module {path}")]
    Expand {
        /// The module's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PayloadError,
    },
}

/// What a wanted module turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// A file to load.
    File,
    /// Part of the kernel.
    Builtin,
    /// Not made for this kernel.
    Absent,
}

/// The modules of one kernel, as depmod indexed them.
#[derive(Debug)]
pub(crate) struct ModuleIndex {
    /// By name: the file and the files it needs, as `modules.dep` writes them.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

/// `kernel/fs/foo-bar.ko.xz` is the module `foo_bar`.
pub(crate) fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split_once(".ko").map_or(base, |(name, _)| name).replace('-', "_")
}

impl ModuleIndex {
    /// Reads `modules.dep` and `modules.builtin` of `directory` (`.../lib/modules/RELEASE`).
    pub(crate) fn read(directory: &Path, release: &str) -> Result<Self, ModuleError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| ModuleError::Index {
                path,
                release: release.to_owned(),
                source,
            })
        };
        Self::parse(&read("modules.dep")?, &read("modules.builtin")?)
    }

    pub(crate) fn parse(dep: &str, builtin: &str) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        for (index, line) in dep.lines().enumerate() {
            let (file, needs) = line
                .split_once(':')
                .filter(|(file, _)| file.contains(".ko"))
                .ok_or(ModuleError::Malformed { line: index + 1 })?;
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            files.insert(module_name(file), (file.to_owned(), needs));
        }
        Ok(Self { files, builtin: builtin.lines().map(module_name).collect() })
    }

    /// Whether the kernel has module `name`, and how.
    pub(crate) fn presence(&self, name: &str) -> Presence {
        let name = module_name(name);
        if self.files.contains_key(&name) {
            Presence::File
        } else if self.builtin.contains(&name) {
            Presence::Builtin
        } else {
            Presence::Absent
        }
    }

    /// The files to load for `wanted`, each after all it needs and none twice. What is built in
    /// needs no file.
    pub(crate) fn load_order<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<String>, ModuleError> {
        let mut order = Order::default();
        for name in wanted {
            match self.presence(name) {
                Presence::File => self.visit(&module_name(name), &mut order)?,
                Presence::Builtin => {}
                Presence::Absent => return Err(ModuleError::Missing { name: name.to_owned() }),
            }
        }
        Ok(order.files)
    }

    fn visit(&self, name: &str, order: &mut Order) -> Result<(), ModuleError> {
        if order.done.contains(name) {
            return Ok(());
        }
        if !order.open.insert(name.to_owned()) {
            return Err(ModuleError::Cycle { name: name.to_owned() });
        }
        let Some((file, needs)) = self.files.get(name) else {
            return Err(ModuleError::Missing { name: name.to_owned() });
        };
        for (_, companion) in COMPANIONS.iter().filter(|(of, _)| *of == name) {
            if self.presence(companion) == Presence::File {
                self.visit(companion, order)?;
            }
        }
        // depmod lists the nearest need first; what lies deepest must be loaded first.
        for need in needs.iter().rev() {
            let needed = module_name(need);
            if !self.files.contains_key(&needed) {
                return Err(ModuleError::MissingDependency {
                    name: name.to_owned(),
                    dependency: need.clone(),
                });
            }
            self.visit(&needed, order)?;
        }
        order.open.remove(name);
        order.done.insert(name.to_owned());
        order.files.push(file.clone());
        Ok(())
    }
}

/// The state of one depth-first walk.
#[derive(Debug, Default)]
struct Order {
    open: BTreeSet<String>,
    done: BTreeSet<String>,
    files: Vec<String>,
}

/// A module ready to be put into an image.
#[derive(Debug)]
pub(crate) struct Module {
    /// The file below `lib/modules/RELEASE`, without a compression's suffix.
    pub file: String,
    /// The bytes as they lie on disk, whose digest is the input's.
    pub stored: Vec<u8>,
    /// The ELF file itself.
    pub object: Vec<u8>,
}

/// Reads the module `file` below `directory`, expanded when it is compressed: the guest's
/// kernel need not be able to do that itself.
pub(crate) fn read_module(directory: &Path, file: &str) -> Result<Module, ModuleError> {
    let path = directory.join(file);
    let stored =
        std::fs::read(&path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
    let object = Compression::detect(&stored)
        .and_then(|compression| compression.expand(&stored, MAX_MODULE))
        .map_err(|source| ModuleError::Expand { path, source })?;
    let file = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    Ok(Module { file: format!("{file}.ko"), stored, object })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/lib/crc16.ko:
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/virtio/virtio-pci.ko.xz: kernel/drivers/virtio/legacy.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/legacy.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
kernel/lost.ko: kernel/gone.ko
";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(DEP, "kernel/drivers/md/dm-mod.ko\n").unwrap()
    }

    #[test]
    fn each_module_comes_after_all_it_needs_and_none_comes_twice() {
        let order = index().load_order(["virtio_pci", "ext4", "virtio"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/drivers/virtio/virtio.ko.xz",
                "kernel/drivers/virtio/legacy.ko.xz",
                "kernel/drivers/virtio/virtio-pci.ko.xz",
                "kernel/crypto/crc32c_generic.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/mbcache.ko",
                "kernel/lib/crc16.ko",
                "kernel/fs/ext4/ext4.ko",
            ]
        );
    }

    #[test]
    fn a_module_built_into_the_kernel_needs_no_file() {
        assert_eq!(index().presence("dm_mod"), Presence::Builtin);
        assert!(index().load_order(["dm-mod"]).unwrap().is_empty());
    }

    #[test]
    fn a_module_the_kernel_lacks_is_named() {
        let error = index().load_order(["erofs"]).unwrap_err();
        assert!(matches!(&error, ModuleError::Missing { name } if name == "erofs"), "{error}");
    }

    #[test]
    fn a_dependency_that_is_not_listed_is_named() {
        let error = index().load_order(["lost"]).unwrap_err();
        assert!(
            matches!(&error, ModuleError::MissingDependency { name, dependency }
                if name == "lost" && dependency == "kernel/gone.ko"),
            "{error}"
        );
    }

    #[test]
    fn modules_that_need_each_other_are_an_error_and_no_endless_walk() {
        let error = index().load_order(["a"]).unwrap_err();
        assert!(matches!(error, ModuleError::Cycle { .. }), "{error}");
    }

    #[test]
    fn a_line_without_a_module_is_reported_by_its_number() {
        let error = ModuleIndex::parse("kernel/a.ko:\n<html>\n", "").unwrap_err();
        assert!(matches!(error, ModuleError::Malformed { line: 2 }), "{error}");
    }

    #[test]
    fn a_directory_without_an_index_says_how_to_make_one() {
        let directory = tempfile::tempdir().unwrap();
        let error = ModuleIndex::read(directory.path(), "6.1.0").unwrap_err().to_string();
        assert!(error.contains("modules.dep") && error.contains("depmod -b DIR 6.1.0"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_index_makes_the_walk_panic_or_load_too_early(
            needs in proptest::collection::vec(proptest::collection::vec(0_usize..12, 0..4), 12)
        ) {
            let dep: String = needs.iter().enumerate().map(|(module, needs)| {
                let needs: Vec<_> = needs.iter().map(|need| format!("k/m{need}.ko")).collect();
                format!("k/m{module}.ko: {}\n", needs.join(" "))
            }).collect();
            let index = ModuleIndex::parse(&dep, "").unwrap();
            match index.load_order(["m0"]) {
                Err(ModuleError::Cycle { .. }) => {}
                Err(other) => panic!("{other}"),
                Ok(order) => {
                    for (turn, file) in order.iter().enumerate() {
                        let (_, needs) = &index.files[&module_name(file)];
                        proptest::prop_assert!(needs.iter().all(|need| order[..turn].contains(need)));
                    }
                }
            }
        }
    }
}
