//! Networks of ours: addresses, NAT and names, shared by sandboxes.
//!
//! ```text
//!   join:   record says so ─► address, rules ─► rules of the sandbox ─► tap ─► sidecars ─► record
//!   leave:  tap ─► rules, sidecars ─► record; the last one takes address, rules and record along
//! ```
//!
//! Each network has a folder with its record, `network.json`: what it is, and who is on it with which
//! addresses, ports and processes. The record is written before anything on the host changes and after
//! the last of it is undone, under one lock for all networks, since subnets and ports are the host's.
//! So what a killed owner left can be read off it, and [`Networks::sweep`] leaves in its name.
//!
//! Each sandbox has a wire of its own to the host, its address alone, and the host as its gateway: what
//! sandboxes say to each other goes by way of the host, where the rules are (docs/decisions).

mod change;
mod record;
mod spec;
mod sysctl;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::egress::Egress;
use crate::link::Mac;
use crate::namespace::Namespace;
use crate::publish::Published;
use crate::rates::Rates;
use crate::{NetError, Result};

pub(crate) use change::listening_addresses;
pub use record::{Lease, NetworkRecord};
pub use spec::NetworkSpec;

/// The networks of one root directory.
#[derive(Debug, Clone)]
pub struct Networks {
    folder: PathBuf,
    /// A program that serves names and ports when called with the words of [`crate::dns`] and
    /// [`crate::forward`]. None: networks have neither.
    helper: Option<PathBuf>,
}

/// A sandbox on its way onto a network.
#[derive(Debug, Clone)]
pub struct Join {
    /// Its name, which it will have on the network too.
    pub sandbox: String,
    /// The network.
    pub network: NetworkSpec,
    /// Further names it is to have there.
    pub aliases: Vec<String>,
    /// Its hardware address; none: one of ours.
    pub mac: Option<Mac>,
    /// The ports of the host that are to lead to it.
    pub published: Vec<Published>,
    /// What it may begin to talk to.
    pub egress: Egress,
    /// How fast it may.
    pub rates: Rates,
}

/// A sandbox on a network.
#[derive(Debug)]
pub struct Joined {
    /// The network as it is now.
    pub network: NetworkRecord,
    /// What the sandbox has of it.
    pub lease: Lease,
    /// Its tap; gone with its last descriptor.
    pub tap: OwnedFd,
    /// Whether names of sandboxes are served.
    pub has_names: bool,
}

impl Networks {
    /// Those whose records are below `folder`, which need not be there yet.
    pub fn at(folder: PathBuf, helper: Option<PathBuf>) -> Self {
        Self { folder, helper }
    }

    /// Puts a sandbox onto a network, which is made if nobody is on it.
    ///
    /// # Errors
    /// The network is there and different; an address, port or name is taken; the host refuses:
    /// nothing is left then.
    pub fn join(&self, join: &Join) -> Result<Joined> {
        let _lock = self.lock()?;
        change::join(self, join)
    }

    /// Takes a sandbox off a network. It not being there is success.
    ///
    /// # Errors
    /// The host refuses: it can be tried again.
    pub fn leave(&self, network: &str, sandbox: &str) -> Result<()> {
        let _lock = self.lock()?;
        change::leave(self, network, sandbox)
    }

    /// Takes off every network whoever is not alive any more; returns their names.
    ///
    /// # Errors
    /// The first that could not be taken off; the others were.
    pub fn sweep(&self, is_alive: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.sweep_unwritten()?;
        let (mut swept, mut outcome) = (Vec::new(), Ok(()));
        let here = Namespace::current()?.identity()?;
        // Those of another namespace of the host are for who is in it to sweep.
        for network in self.all()?.into_iter().filter(|network| network.namespace == here) {
            for sandbox in network.leases.keys().filter(|sandbox| !is_alive(sandbox)) {
                match change::leave(self, &network.name, sandbox) {
                    Ok(()) => swept.push(sandbox.clone()),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
        }
        outcome.map(|()| swept)
    }

    /// Removes folders without a record: who made them died before writing it, or after removing it, so
    /// nothing on the host is theirs. The caller has the lock.
    fn sweep_unwritten(&self) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(|e| self.failed("list", e))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            if NetworkRecord::read(&path)?.is_none() {
                fs::remove_dir_all(&path).map_err(|source| NetError::File {
                    what: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn all(&self) -> Result<Vec<NetworkRecord>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.failed("list", source)),
        };
        let mut all = Vec::new();
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            all.extend(NetworkRecord::read(&entry.path())?);
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// One network.
    ///
    /// # Errors
    /// There is none of this name; its record cannot be read.
    pub fn one(&self, name: &str) -> Result<NetworkRecord> {
        let unknown = || NetError::NoNetwork { name: name.to_owned() };
        spec::check_name(name).map_err(|_| unknown())?;
        NetworkRecord::read(&self.folder_of(name))?.ok_or_else(unknown)
    }

    /// The folder of a network.
    pub fn folder_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn helper(&self) -> Option<&Path> {
        self.helper.as_deref()
    }

    /// Waits for whoever changes networks right now.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder)
            .map_err(|source| self.failed("make the folder", source))?;
        let path = self.folder.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(|source| self.failed("lock", source))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| self.failed("lock", e.into()))?;
        Ok(file)
    }

    fn failed(&self, what: &'static str, source: std::io::Error) -> NetError {
        NetError::File { what, path: self.folder.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_network_whose_maker_died_before_its_record_is_swept() {
        let place = tempfile::tempdir().unwrap();
        let networks = Networks::at(place.path().join("networks"), None);
        let folder = networks.folder_of("lab");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".tmp1234"), "{").unwrap();
        assert!(networks.sweep(|_| true).unwrap().is_empty());
        assert!(!folder.exists());
        assert!(networks.folder_of("lock").is_file(), "the lock stays");
    }
}
