//! Who a process runs as: names from the container's own files.
//!
//! A user named at the command line means the container's user of that name, so `/etc/passwd` and
//! `/etc/group` are read beneath the container's root, where no link leads out. The C library's
//! look-up is no way to do this: in a static program it would load code from the container.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use libcontainer::oci_spec::runtime::Process;

use super::request::{Failure, FailureKind};
use crate::sys;

/// The annotation with which a host names the user of a container's init; for a further process
/// it is the `username` of the OCI user.
pub const USER_ANNOTATION: &str = "coracle.user";

/// The account files of a container.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// A user with all that follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups, ascending.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

/// Larger files are not account files.
const LIMIT: u64 = 4 << 20;

impl Accounts {
    /// Reads the files beneath `root`; a missing one is empty.
    pub fn read(root: BorrowedFd<'_>) -> Self {
        let read = |path| {
            let mut text = Vec::new();
            // Not blocking: the file may turn out to be a pipe.
            if let Ok(file) = sys::open_beneath(root, path, libc::O_RDONLY | libc::O_NONBLOCK) {
                // An unreadable file knows no one, like a missing one.
                drop(File::from(file).take(LIMIT).read_to_end(&mut text));
            }
            String::from_utf8_lossy(&text).into_owned()
        };
        Self { passwd: read(c"etc/passwd"), group: read(c"etc/group") }
    }

    /// Resolves `name|uid[:group|gid]`. A number need not be in the files; a name must.
    pub fn resolve(&self, text: &str) -> Result<Identity, Failure> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let entry = self.user(user);
        let uid = match (&entry, user.parse()) {
            (Some(entry), _) => entry.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(unknown("user", user)),
        };
        let gid = match group {
            Some(group) => self.group_id(group)?,
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        // Someone who asks for a group gets that group.
        let groups = match (&entry, group) {
            (Some(entry), None) => self.groups_of(&entry.name),
            _ => Vec::new(),
        };
        let home = entry.map_or_else(|| default_home(uid), |entry| entry.home);
        Ok(Identity { uid, gid, groups, home })
    }

    /// The home directory of a user known by number.
    pub fn home(&self, uid: u32) -> String {
        self.users()
            .find(|user| user.uid == uid)
            .map_or_else(|| default_home(uid), |user| user.home)
    }

    fn users(&self) -> impl Iterator<Item = User> + '_ {
        self.passwd.lines().filter_map(User::parse)
    }

    /// By name first: a user may be called by digits.
    fn user(&self, text: &str) -> Option<User> {
        let number: Option<u32> = text.parse().ok();
        self.users()
            .find(|user| user.name == text)
            .or_else(|| self.users().find(|user| Some(user.uid) == number))
    }

    fn group_id(&self, text: &str) -> Result<u32, Failure> {
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != text {
                return None;
            }
            fields.nth(1)?.parse().ok()
        });
        named.or_else(|| text.parse().ok()).ok_or_else(|| unknown("group", text))
    }

    fn groups_of(&self, name: &str) -> Vec<u32> {
        let mut groups: Vec<u32> = self
            .group
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [_, _, gid, members] = fields.as_slice() else { return None };
                members.split(',').any(|member| member == name).then(|| gid.parse().ok())?
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// A line of passwd.
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl User {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let home = if home.is_empty() { default_home(uid) } else { (*home).to_owned() };
        Some(Self { name: (*name).to_owned(), uid, gid, home })
    }
}

fn default_home(uid: u32) -> String {
    if uid == 0 { "/root".to_owned() } else { "/".to_owned() }
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure {
        kind: FailureKind::UserNotFound,
        message: format!("the container has no {what} {name:?}"),
    }
}

/// Puts numbers in the place of the process's user name, and its home into the environment:
/// libcontainer would ask the C library for it.
pub fn settle(process: &mut Process, named: Option<&str>, root: BorrowedFd<'_>) -> Result<()> {
    let accounts = Accounts::read(root);
    let named = named.or(process.user().username().as_deref()).filter(|name| !name.is_empty());
    let home = match named.map(str::to_owned) {
        Some(name) => {
            let identity = accounts.resolve(&name)?;
            let mut user = process.user().clone();
            user.set_uid(identity.uid)
                .set_gid(identity.gid)
                .set_additional_gids(Some(identity.groups))
                .set_username(None);
            process.set_user(user);
            identity.home
        }
        None => accounts.home(process.user().uid()),
    };
    let mut environment = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={home}"));
    }
    if !environment.iter().any(|entry| entry.starts_with("PATH=")) {
        environment.push(format!("PATH={}", super::executor::DEFAULT_PATH));
    }
    process.set_env(Some(environment));
    Ok(())
}

/// As [`settle`], with the root given by its path.
pub fn settle_beneath(
    process: &mut Process,
    named: Option<&str>,
    root: &std::path::Path,
) -> Result<()> {
    use std::os::fd::AsFd;
    let root = super::open_directory(root).context("the container's root")?;
    settle(process, named, root.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n\
                     www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
                     broken line\n\
                     1000:x:5:6::/five:\n"
                .to_owned(),
            group: "root:x:0:\nwww-data:x:33:\nvideo:x:44:www-data,root\ntape:x:26:www-data\n"
                .to_owned(),
        }
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let identity = accounts().resolve("www-data").unwrap();
        assert_eq!(
            identity,
            Identity { uid: 33, gid: 33, groups: vec![26, 44], home: "/var/www".to_owned() }
        );
    }

    #[test]
    fn a_group_that_is_asked_for_is_the_only_one() {
        let identity = accounts().resolve("www-data:video").unwrap();
        assert_eq!((identity.gid, identity.groups), (44, vec![]));
    }

    #[test]
    fn a_number_need_not_be_known() {
        let identity = accounts().resolve("4711:4712").unwrap();
        assert_eq!((identity.uid, identity.gid, identity.home), (4711, 4712, "/".to_owned()));
        assert_eq!(accounts().resolve("4711").unwrap().gid, 0);
    }

    #[test]
    fn a_user_called_by_digits_is_found_by_name_first() {
        assert_eq!(accounts().resolve("1000").unwrap().uid, 5);
    }

    #[test]
    fn an_unknown_name_is_an_error_of_its_own_kind() {
        for text in ["nobody", "root:nogroup", ""] {
            let failure = accounts().resolve(text).unwrap_err();
            assert_eq!(failure.kind, FailureKind::UserNotFound, "{text:?}");
        }
    }

    #[test]
    fn account_files_are_read_beneath_the_root_only() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        // Absolute: leads to the container's own file, which is not there, never to the host's.
        std::os::unix::fs::symlink("/etc/passwd-elsewhere", root.path().join("etc/passwd"))
            .unwrap();
        std::fs::write(root.path().join("etc/passwd-elsewhere"), "in:x:7:7::/in:\n").unwrap();
        let directory = File::open(root.path()).unwrap();
        assert_eq!(Accounts::read(directory.as_fd()).resolve("in").unwrap().uid, 7);
    }

    proptest! {
        #[test]
        fn no_account_file_makes_us_panic(passwd in ".*", group in ".*", user in ".*") {
            let _ = Accounts { passwd, group }.resolve(&user);
        }
    }
}
