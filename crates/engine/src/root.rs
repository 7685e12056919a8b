//! Where things live on the host.
//!
//! Three kinds of directory, all below one `--root` when that is given: *data*
//! survives a reboot (guest files, sandbox state), *cache* can be thrown away at
//! any time (converted images), *run* holds what dies with the host's boot
//! (sockets, locks). Without `--root` they follow the conventions of the system
//! for root and of XDG for everyone else.

use std::path::{Path, PathBuf};

use crate::run_dir;

/// The control group that those of all sandboxes are in.
pub(crate) const CGROUPS: &str = "coracle";

/// Bytes of the monitors' log after which another is begun.
const MONITOR_LOG: u64 = 8 << 20;

/// The directories of one coracle installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    data: PathBuf,
    cache: PathBuf,
    run: PathBuf,
    given: Option<PathBuf>,
}

/// What the choice of directories depends on; a value, so that it can be tested.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Is the effective user root?
    pub is_root: bool,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
    /// `$XDG_CACHE_HOME`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
}

impl Surroundings {
    /// Reads the surroundings of this process.
    pub fn of_this_process() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Surroundings {
            is_root: rustix::process::geteuid().is_root(),
            home: path("HOME"),
            xdg_data_home: path("XDG_DATA_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
        }
    }
}

impl Root {
    /// Everything below one directory, as `--root DIR` asks.
    pub fn at(dir: &Path) -> Self {
        Root {
            data: dir.to_path_buf(),
            cache: dir.join("cache"),
            run: dir.join("run"),
            given: Some(dir.to_path_buf()),
        }
    }

    /// The default directories for these surroundings.
    pub fn default_for(around: &Surroundings) -> Self {
        if around.is_root {
            return Root {
                data: "/var/lib/coracle".into(),
                cache: "/var/cache/coracle".into(),
                run: "/run/coracle".into(),
                given: None,
            };
        }
        let home = around.home.clone().unwrap_or_else(|| "/".into());
        let below = |xdg: &Option<PathBuf>, fallback: &str| {
            xdg.clone().unwrap_or_else(|| home.join(fallback)).join("coracle")
        };
        Root {
            data: below(&around.xdg_data_home, ".local/share"),
            cache: below(&around.xdg_cache_home, ".cache"),
            run: below(&around.xdg_runtime_dir, ".cache/run"),
            given: None,
        }
    }

    /// `given` (from `--root` or `CORACLE_ROOT`) or else the default.
    pub fn choose(given: Option<&Path>) -> Self {
        match given {
            // Whoever is told of it may be elsewhere.
            Some(dir) => Root::at(&std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())),
            None => Root::default_for(&Surroundings::of_this_process()),
        }
    }

    /// The directory that holds everything, if one was given.
    pub fn given(&self) -> Option<&Path> {
        self.given.as_deref()
    }

    /// Kernel, initrd and built-in root file systems of the guest.
    pub fn guest(&self) -> PathBuf {
        self.data.join("guest")
    }

    /// The directory that survives a reboot.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What is written down of a sandbox.
    pub fn state(&self, name: &str) -> PathBuf {
        self.data.join("sbs").join(name)
    }

    /// What the commands of a sandbox have written.
    pub fn logs(&self, name: &str) -> PathBuf {
        self.data.join("logs").join(name)
    }

    /// What the command of a further container of a sandbox has written.
    pub fn container_logs(&self, sandbox: &str, container: &str) -> PathBuf {
        self.logs(sandbox).join("containers").join(container)
    }

    /// The control group of a sandbox's VM, below the root of the control groups. Sandboxes of
    /// other root directories have other groups, also those of the same name.
    pub fn cgroup(&self, name: &str) -> PathBuf {
        PathBuf::from(CGROUPS).join(format!("{name}{}", self.cgroup_suffix()))
    }

    /// What the names of this root directory's control groups end with.
    pub(crate) fn cgroup_suffix(&self) -> String {
        // FNV-1a: a name that is the same in every version of ours.
        let bytes = self.run.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        format!(".{hash:08x}")
    }

    /// What monitors and keepers say, opened to be appended to. One of 8 MiB is put aside first, in
    /// the place of the one before it; who has it open goes on writing there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn monitor_log(&self) -> std::io::Result<std::fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::create_dir_all(&self.data)?;
        let path = self.data.join("monitor.log");
        if std::fs::metadata(&path).is_ok_and(|log| log.len() >= MONITOR_LOG) {
            // Somebody else may have done it this very moment.
            let _ = std::fs::rename(&path, path.with_extension("log.1"));
        }
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }

    /// Converted images, by digest.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// Small remembered verdicts, such as the one about KVM.
    pub fn verdicts(&self) -> PathBuf {
        self.cache.join("verdicts")
    }

    /// One directory per private network: its record. They die with the host's boot, as do the
    /// devices and rules they tell of.
    pub fn networks(&self) -> PathBuf {
        // No name of a sandbox begins with a dot.
        self.run.join(run_dir::NETWORKS)
    }

    /// One directory per live sandbox: sockets and locks.
    pub fn run(&self) -> &Path {
        &self.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_uses_the_system_directories() {
        let root = Root::default_for(&Surroundings { is_root: true, ..Default::default() });
        assert_eq!(root.guest(), Path::new("/var/lib/coracle/guest"));
        assert_eq!(root.run(), Path::new("/run/coracle"));
    }

    #[test]
    fn other_users_get_xdg_directories() {
        let around = Surroundings {
            home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..Default::default()
        };
        let root = Root::default_for(&around);
        assert_eq!(root.guest(), Path::new("/home/u/.local/share/coracle/guest"));
        assert_eq!(root.images(), Path::new("/home/u/.cache/coracle/images"));
        assert_eq!(root.run(), Path::new("/run/user/7/coracle"));
    }

    #[test]
    fn a_log_of_the_monitors_that_is_full_is_put_aside() {
        let place = tempfile::tempdir().unwrap();
        let root = Root::at(place.path());
        root.monitor_log().unwrap().set_len(MONITOR_LOG).unwrap();
        assert_eq!(root.monitor_log().unwrap().metadata().unwrap().len(), 0);
        let aside = root.data.join("monitor.log.1");
        assert_eq!(std::fs::metadata(aside).unwrap().len(), MONITOR_LOG);
    }

    #[test]
    fn a_given_root_holds_everything() {
        let root = Root::at(Path::new("/x"));
        for dir in [root.guest(), root.images(), root.run().to_path_buf(), root.verdicts()] {
            assert!(dir.starts_with("/x"), "{dir:?}");
        }
    }
}
