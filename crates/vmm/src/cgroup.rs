//! The control group of a VM's process: made before it, entered by it, removed after it.
//!
//! Only the CPU controller, on either of the two hierarchies: version 2 where `/sys/fs/cgroup`
//! is one tree, else version 1's tree for `cpu`. Only files of our own group are written, and
//! on version 2 the delegation of the controller along its path.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use crate::{Cgroup, VmmError};

/// Microseconds over which a quota counts.
const PERIOD: u64 = 100_000;

/// Where the host keeps its CPU controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1: the root of the tree for `cpu`.
    V1(PathBuf),
    /// Version 2: the root of the one tree.
    V2(PathBuf),
}

impl Hierarchy {
    /// The host's hierarchy, none when it has no CPU controller.
    pub fn of_host() -> Option<Self> {
        Self::below(Path::new("/sys/fs/cgroup"))
    }

    fn below(root: &Path) -> Option<Self> {
        if root.join("cgroup.controllers").exists() {
            return Some(Self::V2(root.to_owned()));
        }
        let cpu = root.join("cpu");
        cpu.join("cpu.shares").exists().then_some(Self::V1(cpu))
    }

    fn root(&self) -> &Path {
        match self {
            Hierarchy::V1(root) | Hierarchy::V2(root) => root,
        }
    }

    /// Makes the group and sets its limits; gives the descriptor through which a process enters.
    pub(crate) fn create(&self, group: &Cgroup) -> Result<OwnedFd, VmmError> {
        let components: Vec<&Path> = names(&group.path)?;
        let mut directory = self.root().to_owned();
        for name in &components {
            if let Hierarchy::V2(_) = self {
                write(&directory.join("cgroup.subtree_control"), "+cpu")?;
            }
            directory.push(name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create cgroup", &directory, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        for (file, value) in self.limits(group) {
            write(&directory.join(file), &value)?;
        }
        let procs = directory.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&procs);
        Ok(file.map_err(|error| failed("open", &procs, error))?.into())
    }

    /// The files to write, in order.
    fn limits(&self, group: &Cgroup) -> Vec<(&'static str, String)> {
        // The kernel refuses a quota under one millisecond.
        let quota = group.cpu_millis.map(|millis| (u64::from(millis) * PERIOD / 1000).max(1000));
        let weight = group.cpu_weight.map(|weight| u64::from(weight.clamp(1, 10_000)));
        let mut files = Vec::new();
        match self {
            Hierarchy::V1(_) => {
                // 1024 shares are what everyone has, as 100 is in version 2.
                let shares = weight.map(|weight| (weight * 1024 / 100).clamp(2, 262_144));
                files.extend(shares.map(|shares| ("cpu.shares", shares.to_string())));
                if let Some(quota) = quota {
                    files.push(("cpu.cfs_period_us", PERIOD.to_string()));
                    files.push(("cpu.cfs_quota_us", quota.to_string()));
                }
            }
            Hierarchy::V2(_) => {
                files.extend(weight.map(|weight| ("cpu.weight", weight.to_string())));
                files.extend(quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}"))));
            }
        }
        files
    }

    /// Removes the group, which the last process has just left; a group that is gone is fine.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), VmmError> {
        let directory =
            names(path)?.iter().fold(self.root().to_owned(), |dir, name| dir.join(name));
        let mut last = Ok(());
        // A reaped process may be counted for some milliseconds yet.
        for _ in 0..50 {
            match fs::remove_dir(&directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    last = Err(failed("remove cgroup", &directory, error));
                    sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(failed("remove cgroup", &directory, error)),
            }
        }
        last
    }
}

/// The names along a group's path, none of which leads upward.
fn names(path: &Path) -> Result<Vec<&Path>, VmmError> {
    let names: Option<Vec<&Path>> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Some(Path::new(name)),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => None,
        })
        .collect();
    names.filter(|names| !names.is_empty()).ok_or_else(|| {
        VmmError::Config(format!("cgroup {} is not a plain relative path", path.display()))
    })
}

fn write(path: &Path, value: &str) -> Result<(), VmmError> {
    fs::write(path, value).map_err(|error| failed("write cgroup file", path, error))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> VmmError {
    VmmError::Host { operation, object: path.display().to_string(), source }
}

/// Makes a VM's group; what was made of one that cannot be finished is removed.
pub(crate) fn create(group: &Cgroup) -> Result<OwnedFd, VmmError> {
    let hierarchy = Hierarchy::of_host().ok_or_else(|| {
        VmmError::Config("there is no CPU controller for control groups on this host".into())
    })?;
    hierarchy.create(group).inspect_err(|_| {
        if let Err(error) = hierarchy.remove(&group.path) {
            tracing::debug!(%error, "half a control group is left");
        }
    })
}

/// What a process writes `0` to so that it enters a group that is there.
///
/// # Errors
/// There is no such group, or it may not be entered.
pub fn entry(path: &Path) -> Result<OwnedFd, VmmError> {
    let procs = directory(path)?.join("cgroup.procs");
    let file = fs::OpenOptions::new().write(true).open(&procs);
    Ok(file.map_err(|error| failed("open", &procs, error))?.into())
}

/// Where a group is on this host.
///
/// # Errors
/// The host has no CPU controller; the path is not plain and relative.
pub fn directory(path: &Path) -> Result<PathBuf, VmmError> {
    let hierarchy = Hierarchy::of_host().ok_or_else(|| {
        VmmError::Config("there is no CPU controller for control groups on this host".into())
    })?;
    Ok(names(path)?.iter().fold(hierarchy.root().to_owned(), |dir, name| dir.join(name)))
}

/// Removes a VM's control group whose processes are gone; one that is not there is fine.
///
/// # Errors
/// Something is in it still.
pub fn remove(path: &Path) -> Result<(), VmmError> {
    Hierarchy::of_host().map_or(Ok(()), |host| host.remove(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(cpu_millis: Option<u32>, cpu_weight: Option<u32>) -> Cgroup {
        Cgroup { path: "coracle/x".into(), cpu_millis, cpu_weight, is_optional: false }
    }

    #[test]
    fn version_1_gets_a_quota_and_shares() {
        let v1 = Hierarchy::V1("/cg/cpu".into());
        let expected = [
            ("cpu.shares", "512".to_owned()),
            ("cpu.cfs_period_us", "100000".to_owned()),
            ("cpu.cfs_quota_us", "150000".to_owned()),
        ];
        assert_eq!(v1.limits(&group(Some(1500), Some(50))), expected);
    }

    #[test]
    fn version_2_gets_a_maximum_and_a_weight() {
        let v2 = Hierarchy::V2("/cg".into());
        let expected = [("cpu.weight", "50".to_owned()), ("cpu.max", "150000 100000".to_owned())];
        assert_eq!(v2.limits(&group(Some(1500), Some(50))), expected);
    }

    #[test]
    fn limits_are_kept_within_what_the_kernel_takes() {
        let v1 = Hierarchy::V1("/cg/cpu".into());
        let limits = v1.limits(&group(Some(1), Some(0)));
        assert_eq!(limits[0], ("cpu.shares", "10".to_owned()));
        assert_eq!(limits[2], ("cpu.cfs_quota_us", "1000".to_owned()));
    }

    #[test]
    fn a_path_that_leads_out_of_the_tree_is_refused() {
        for path in ["", "/abs", "a/../../b", "."] {
            assert!(matches!(names(Path::new(path)), Err(VmmError::Config(_))), "{path}");
        }
    }

    #[test]
    fn the_controller_is_delegated_along_the_path_on_version_2() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::write(path.join("cgroup.controllers"), "cpu").unwrap();
        let v2 = Hierarchy::below(path).unwrap();
        assert_eq!(v2, Hierarchy::V2(path.to_owned()));
        fs::create_dir_all(path.join("coracle/x")).unwrap();
        fs::write(path.join("coracle/x/cgroup.procs"), "").unwrap();
        v2.create(&group(Some(500), None)).unwrap();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(read("cgroup.subtree_control"), "+cpu");
        assert_eq!(read("coracle/cgroup.subtree_control"), "+cpu");
        assert_eq!(read("coracle/x/cpu.max"), "50000 100000");
    }
}
