//! The file systems every Linux program expects, in the order they need each other.
//!
//! `/proc`, `/sys` and `/dev` are mounted on the initrd, because the root device cannot be found
//! without them, and move along with the switch of root; the others are mounted on the new root.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// One pseudo file system.
struct Pseudo {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What must be there to find the root device. Also the order in which they move.
pub const EARLY: [&str; 3] = ["/proc", "/sys", "/dev"];

const EARLY_MOUNTS: [Pseudo; 3] = [
    Pseudo { kind: "proc", target: EARLY[0], flags: NO_EXEC, data: None },
    Pseudo { kind: "sysfs", target: EARLY[1], flags: NO_EXEC, data: None },
    Pseudo {
        kind: "devtmpfs",
        target: EARLY[2],
        flags: MsFlags::MS_NOSUID,
        data: Some("mode=0755"),
    },
];

const LATE_MOUNTS: [Pseudo; 5] = [
    Pseudo {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=0755"),
    },
    Pseudo {
        kind: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=1777"),
    },
    Pseudo { kind: "tmpfs", target: "/dev/shm", flags: NO_EXEC, data: Some("mode=1777") },
    Pseudo {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: Some("mode=0620,ptmxmode=0666,gid=5"),
    },
    Pseudo { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_EXEC, data: None },
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what the search for the root device needs.
pub fn mount_early() -> Result<()> {
    EARLY_MOUNTS.iter().try_for_each(Pseudo::mount)
}

/// Mounts the rest, on the root the VM will keep, and enables every cgroup controller for the
/// groups beneath the root.
pub fn mount_late() -> Result<()> {
    LATE_MOUNTS.iter().try_for_each(Pseudo::mount)?;
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("linking {link} to {target}"));
            }
            _ => {}
        }
    }
    enable_controllers(Path::new("/sys/fs/cgroup"))
}

/// Hands every controller `group` has to its children.
pub fn enable_controllers(group: &Path) -> Result<()> {
    let list = group.join("cgroup.controllers");
    let controllers =
        fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let wanted: Vec<String> =
        controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    let control = group.join("cgroup.subtree_control");
    fs::write(&control, wanted.join(" ")).with_context(|| format!("writing {}", control.display()))
}

impl Pseudo {
    fn mount(&self) -> Result<()> {
        let Self { kind, target, flags, data } = self;
        create_mount_point(Path::new(target))?;
        match mount(Some(*kind), *target, Some(*kind), *flags, *data) {
            // The kernel mounts devtmpfs by itself when it finds the root.
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("mounting {kind} on {target}")),
        }
    }
}

/// Makes sure the directory is there; a read-only root must bring it.
pub fn create_mount_point(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
    .with_context(|| format!("creating the mount point {}", path.display()))
}
