//! Whether this process has the machine's root to itself, and where it keeps states if not.

use super::error::DriverError;
use crate::root::Root;
use std::path::{Path, PathBuf};

/// How a process stands to root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rootless {
    uid: u32,
    own_namespace: bool,
}

impl Rootless {
    /// How this process stands.
    pub fn of_this_process() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let uid = rustix::process::geteuid().as_raw();
        Self { uid, own_namespace: is_own_namespace(&map) }
    }

    /// A process that stands so; for those who know better, and for tests.
    pub fn claimed(uid: u32, own_namespace: bool) -> Self {
        Self { uid, own_namespace }
    }

    /// Whether it is not the machine's root: another user, or root only in a user namespace.
    #[doc(alias = "IsRootless")]
    pub fn is_rootless(self) -> bool {
        self.uid != 0 || self.own_namespace
    }

    /// The user's number.
    pub fn uid(self) -> u32 {
        self.uid
    }
}

/// Whether user numbers are mapped otherwise than in the machine's own namespace.
fn is_own_namespace(map: &str) -> bool {
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    match &lines[..] {
        // Nothing is known: no /proc.
        [] => false,
        [only] => only[..] != ["0", "0", "4294967295"],
        _ => true,
    }
}

/// Where states of a user are kept who is not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserPlace {
    /// As Kata does: `run/vc` in this `XDG_RUNTIME_DIR`, else in `/run/user/UID`.
    Runtime(Option<PathBuf>),
    /// As coracle does, so that they outlast a reboot: `coracle` in `XDG_DATA_HOME`, else in
    /// `.local/share` of the home directory.
    Data {
        /// `XDG_DATA_HOME`.
        data: Option<PathBuf>,
        /// `HOME`.
        home: Option<PathBuf>,
    },
}

/// Where states of a user are kept who is not root.
///
/// # Errors
/// When a directory of the user's is a relative path, or not known at all.
pub fn rootless_root(place: &UserPlace, uid: u32) -> Result<Root, DriverError> {
    let path = match place {
        UserPlace::Runtime(dir) => {
            let dir = named(dir.as_deref(), uid, "XDG_RUNTIME_DIR is a relative path")?;
            let dir = dir.map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), Path::to_owned);
            dir.join("run/vc")
        }
        UserPlace::Data { data, home } => {
            let data = named(data.as_deref(), uid, "XDG_DATA_HOME is a relative path")?;
            let home = named(home.as_deref(), uid, "HOME is a relative path")?;
            let dir = match (data, home) {
                (Some(data), _) => data.to_owned(),
                (None, Some(home)) => home.join(".local/share"),
                (None, None) => {
                    return Err(DriverError::NoRoot { uid, why: "HOME is not set" });
                }
            };
            dir.join("coracle")
        }
    };
    Ok(Root::at(path))
}

/// A directory from the environment; an empty text is none.
fn named<'a>(
    dir: Option<&'a Path>,
    uid: u32,
    why: &'static str,
) -> Result<Option<&'a Path>, DriverError> {
    match dir.filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) if dir.is_relative() => Err(DriverError::NoRoot { uid, why }),
        dir => Ok(dir),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_of_the_machine_is_not_rootless() {
        assert!(!Rootless::claimed(0, false).is_rootless());
        assert!(Rootless::claimed(0, true).is_rootless());
        assert!(Rootless::claimed(1000, false).is_rootless());
    }

    #[test]
    fn a_namespace_of_ones_own_is_known_by_its_map() {
        assert!(!is_own_namespace("         0          0 4294967295\n"));
        assert!(is_own_namespace("0 1000 1\n"));
        assert!(is_own_namespace("0 1000 1\n1 100000 65536\n"));
        assert!(!is_own_namespace(""));
    }

    #[test]
    fn states_of_a_user_are_where_kata_keeps_them() {
        let root = |dir: Option<&str>| {
            rootless_root(&UserPlace::Runtime(dir.map(PathBuf::from)), 1000).unwrap()
        };
        assert_eq!(root(Some("/run/user/7")).path(), Path::new("/run/user/7/run/vc"));
        assert_eq!(root(Some("")).path(), Path::new("/run/user/1000/run/vc"));
        assert_eq!(root(None).path(), Path::new("/run/user/1000/run/vc"));
        let relative = UserPlace::Runtime(Some("here".into()));
        assert!(rootless_root(&relative, 1000).is_err());
    }

    #[test]
    fn states_of_ours_are_where_they_outlast_a_reboot() {
        let root = |data: Option<&str>, home: Option<&str>| {
            let (data, home) = (data.map(PathBuf::from), home.map(PathBuf::from));
            rootless_root(&UserPlace::Data { data, home }, 1000)
        };
        assert_eq!(root(Some("/d"), Some("/h")).unwrap().path(), Path::new("/d/coracle"));
        let at_home = root(None, Some("/h")).unwrap();
        assert_eq!(at_home.path(), Path::new("/h/.local/share/coracle"));
        assert!(root(None, None).is_err());
    }
}
