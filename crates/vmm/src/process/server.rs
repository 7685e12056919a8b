//! A program that serves one device of a VM, confined as the VM itself is: it reads what the guest
//! writes.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tokio::net::unix::pipe::Receiver;

use super::{
    PART, Process,
    launcher::{self, Spawn},
    stderr_pipe,
};
use crate::{User, VmmError, cgroup};

/// A server to be. It has no capabilities and nothing in its environment but whose it is.
#[derive(Debug)]
pub struct DeviceServer<'a> {
    /// What to run.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Descriptors it keeps, under the numbers they have here.
    pub inherited: Vec<OwnedFd>,
    /// What [`PART`] says of it.
    pub part: PathBuf,
    /// The VM's control group, if it has one.
    pub cgroup: Option<&'a Path>,
    /// The VM's user; none: it stays ours.
    pub user: Option<User>,
    /// The kernel kills it when this process dies, however it dies.
    pub die_with_owner: bool,
}

impl DeviceServer<'_> {
    /// Starts it; with it comes what it says on stderr.
    ///
    /// # Errors
    /// It cannot be started; the control group is not there.
    pub async fn start(self) -> io::Result<(Process, Receiver)> {
        let entry = self.cgroup.map(cgroup::entry).transpose();
        let entry = entry.map_err(|error: VmmError| io::Error::other(error))?;
        let (stderr, complaints) = stderr_pipe()?;
        let process = launcher::spawn(Spawn {
            program: self.program,
            arguments: self.arguments,
            environment: vec![
                ("LC_ALL".into(), "C".into()),
                (PART.into(), self.part.into_os_string()),
            ],
            inherited: self.inherited,
            stderr,
            cgroups: entry.into_iter().collect(),
            user: self.user,
            group: None,
            lock_memory: false,
            die_with_owner: self.die_with_owner,
        });
        Ok((process.await?, complaints))
    }
}
