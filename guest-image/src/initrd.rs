//! What lies in the initrd.
//!
//! The kernel unpacks an initrd into the VM's memory, and there it stays as
//! long as the VM lives. So it holds the agent as `/init`, the modules it may
//! need, and nothing else. (It is not compressed: the emulated CPU would pay
//! for that at every boot, and a few megabytes more cost no time that could be
//! measured.) Two files tell the agent about the modules:
//!
//! - `/etc/coracle/modules` names the files to load at boot, one absolute path
//!   a line, in an order in which each line can be loaded when its turn comes;
//! - `/lib/modules/RELEASE/modules.dep` is in depmod's format and knows just
//!   the modules that are here: `FILE: FILE...`, relative to its own
//!   directory, all that the first needs, to be loaded from last to first.

use crate::cpio::{Archive, Kind};
use crate::modules::{Module, ModuleError, ModuleIndex, Presence, module_name};
use crate::tree::{Entry, Node, with_parents};

/// Directories the agent mounts file systems on.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// Modules every guest needs: PCI, the channel, disks, and a container's layers.
pub const BOOT_MODULES: [&str; 5] =
    ["virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay"];

/// Modules a guest may need: disks plugged in later, file systems of its own disks, persistent
/// memory, entropy, memory that is given back. A kernel without one of them still boots.
pub const ON_DEMAND_MODULES: [&str; 15] = [
    "virtio_scsi",
    "sd_mod",
    "ext4",
    "xfs",
    "virtio_pmem",
    "nd_pmem",
    "9p",
    "9pnet_fd",
    "virtiofs",
    "virtio_net",
    "virtio_mem",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_balloon",
    "qemu_fw_cfg",
];

/// The modules one guest gets.
#[derive(Debug)]
pub(crate) struct ModulePlan {
    /// Files to load at boot, in order.
    pub boot: Vec<String>,
    /// All files, in an order in which they can be loaded.
    pub all: Vec<String>,
    /// For each file of `all`, what must be loaded before it, in depmod's order.
    needs: Vec<Vec<String>>,
    /// On-demand modules the kernel does not have.
    pub absent: Vec<String>,
}

impl ModulePlan {
    /// Chooses the files for [`BOOT_MODULES`] and [`ON_DEMAND_MODULES`].
    pub(crate) fn new(index: &ModuleIndex) -> Result<Self, ModuleError> {
        let boot = index.load_order(BOOT_MODULES)?;
        let (present, absent): (Vec<&str>, Vec<&str>) =
            ON_DEMAND_MODULES.iter().partition(|name| index.presence(name) != Presence::Absent);
        let all = index.load_order(BOOT_MODULES.into_iter().chain(present))?;
        let needs = all
            .iter()
            .map(|file| {
                let mut order = index.load_order([module_name(file).as_str()])?;
                order.pop(); // the module itself
                order.reverse();
                Ok(order)
            })
            .collect::<Result<_, ModuleError>>()?;
        Ok(Self { boot, all, needs, absent: absent.into_iter().map(str::to_owned).collect() })
    }

    /// The text of the guest's `modules.dep`.
    fn dep(&self) -> String {
        let line = |(file, needs): (&String, &Vec<String>)| {
            let needs: String = needs.iter().map(|need| format!(" {}", plain(need))).collect();
            format!("{}:{needs}\n", plain(file))
        };
        self.all.iter().zip(&self.needs).map(line).collect()
    }

    /// The text of the guest's `/etc/coracle/modules`.
    fn boot_list(&self, release: &str) -> String {
        self.boot.iter().map(|file| format!("/lib/modules/{release}/{}\n", plain(file))).collect()
    }
}

/// A module's file name without a compression's suffix.
fn plain(file: &str) -> &str {
    file.find(".ko").and_then(|at| file.get(..at + 3)).unwrap_or(file)
}

/// The files both the initrd and the VM's root on persistent memory consist of.
pub(crate) fn guest_tree<'a>(
    agent: &'a [u8],
    release: &str,
    plan: &ModulePlan,
    modules: &'a [Module],
) -> Vec<Entry<'a>> {
    let base = format!("lib/modules/{release}");
    let mut entries: Vec<Entry<'a>> =
        MOUNT_POINTS.into_iter().map(|path| Entry::directory(path, 0o755)).collect();
    entries.push(Entry::file("init", 0o755, agent));
    entries.push(Entry::file("etc/coracle/modules", 0o644, plan.boot_list(release).into_bytes()));
    entries.push(Entry::file(format!("{base}/modules.dep"), 0o644, plan.dep().into_bytes()));
    entries.extend(modules.iter().map(|module| {
        Entry::file(format!("{base}/{}", module.file), 0o644, module.object.as_slice())
    }));
    with_parents(entries)
}

/// Makes the initrd of the tree.
pub(crate) fn initrd(tree: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Archive::default();
    for Entry { path, mode, node } in tree {
        let kind = match node {
            Node::Directory => Kind::Directory,
            Node::File(content) => Kind::File(content),
            Node::Symlink(target) => Kind::Symlink(target),
        };
        archive.add(path, *mode, kind);
    }
    // Before devtmpfs is mounted, this is where the agent's own output goes.
    archive.add("dev/console", 0o600, Kind::CharDevice(5, 1));
    archive.add("dev/null", 0o666, Kind::CharDevice(1, 3));
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0";

    fn plan() -> ModulePlan {
        let mut dep: String =
            BOOT_MODULES[1..].iter().map(|name| format!("k/{name}.ko:\n")).collect();
        dep += "k/virtio_pci.ko.xz: k/virtio.ko.xz\nk/virtio.ko.xz:\n";
        dep += "k/ext4.ko: k/crc16.ko k/jbd2.ko\nk/crc16.ko:\nk/jbd2.ko:\nk/crc32c_generic.ko:\n";
        ModulePlan::new(&ModuleIndex::parse(&dep, "k/xfs.ko\n").unwrap()).unwrap()
    }

    #[test]
    fn the_boot_list_has_what_boot_modules_need_and_nothing_on_demand() {
        let list = plan().boot_list(RELEASE);
        let expected: String =
            ["virtio", "virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay"]
                .iter()
                .map(|name| format!("/lib/modules/6.1.0/k/{name}.ko\n"))
                .collect();
        assert_eq!(list, expected);
    }

    #[test]
    fn each_line_of_modules_dep_read_backwards_loads() {
        let dep = plan().dep();
        assert!(dep.contains("k/virtio_pci.ko: k/virtio.ko\n"), "{dep}");
        assert!(dep.contains("k/ext4.ko: k/crc16.ko k/jbd2.ko k/crc32c_generic.ko\n"), "{dep}");
        assert!(dep.contains("k/jbd2.ko: k/crc32c_generic.ko\n"), "{dep}");
    }

    #[test]
    fn what_is_built_in_is_neither_shipped_nor_absent() {
        let plan = plan();
        assert!(!plan.all.iter().any(|file| file.contains("xfs")));
        assert!(!plan.absent.contains(&"xfs".to_owned()));
        assert!(plan.absent.contains(&"virtio_rng".to_owned()));
    }

    #[test]
    fn the_tree_has_every_parent_once_and_before_what_is_in_it() {
        let tree = guest_tree(b"agent", RELEASE, &plan(), &[]);
        let paths: Vec<&str> = tree.iter().map(|entry| entry.path.as_str()).collect();
        for (turn, path) in paths.iter().enumerate() {
            assert!(!paths[..turn].contains(path), "{path} is there twice");
            if let Some((parent, _)) = path.rsplit_once('/') {
                assert!(paths[..turn].contains(&parent), "{path} comes before {parent}");
            }
        }
        assert!(paths.contains(&"init") && paths.contains(&"proc"), "{paths:?}");
    }
}
