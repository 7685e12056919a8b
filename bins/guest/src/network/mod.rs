//! Networks of containers: namespaces, and the adapters in them.
//!
//! ```text
//!   adapter added:    namespace made on first use ─► device found by its MAC ─► moved in, configured
//!   adapter removed:  device moved back out ─► namespace gone with its last adapter and container
//!   container made:   joins its namespace, sees the name servers and names of its adapters
//! ```
//!
//! Ids are compared without regard to case, as hosts spell one GUID in several ways. A namespace is
//! a folder below [`FOLDER`] that is named after its id: the namespace itself, mounted on a file, and
//! the files its containers see. All of it happens one after the other, under one lock, on threads
//! that may block.

mod adapter;
mod dhcp;
mod files;
mod leases;
mod netlink;
mod plan;
mod space;
mod tenure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_bridge::message::NetworkAdapter;

use files::Files;
use leases::Tenant;
pub use leases::Term;
use plan::{Plan, Position};
use space::Space;
pub use space::loopback_up;

/// Where namespaces are kept.
pub const FOLDER: &str = "/run/networks";

/// How long a device may take to appear.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a DHCP server may take; the host waits longer.
const LEASE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a network could not be had, or not be given up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The id of a namespace, or of an adapter, is none.
    #[error("{id:?} is no id of a network namespace or adapter")]
    Id {
        /// What was given.
        id: String,
    },
    /// What the host says of an adapter makes no sense.
    #[error("adapter {id}: {what} {value:?} is wrong")]
    Adapter {
        /// The adapter.
        id: String,
        /// Which of its members.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// It is there already.
    #[error("adapter {id} is in namespace {namespace} already")]
    Duplicate {
        /// The adapter.
        id: String,
        /// The namespace.
        namespace: String,
    },
    /// No device has the address, or several have.
    #[error("{count} network devices have the address {mac} after {} s", timeout.as_secs())]
    Device {
        /// How many.
        count: usize,
        /// The address.
        mac: String,
        /// How long we looked.
        timeout: Duration,
    },
    /// The kernel refused something.
    #[error("cannot {what}")]
    Kernel {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file or a mount.
    #[error("cannot {what} {path}")]
    File {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// All namespaces.
#[derive(Debug)]
pub struct Networks {
    folder: PathBuf,
    spaces: BTreeMap<String, Entry>,
    /// How many addresses were leased.
    leases: u64,
}

/// A namespace and what is in it.
#[derive(Debug)]
struct Entry {
    space: Space,
    /// By id, in lower case.
    adapters: BTreeMap<String, Plan>,
    /// Those of them whose address is leased.
    tenants: BTreeMap<String, Tenant>,
    files: Files,
}

/// What a container needs of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The namespace.
    pub namespace: PathBuf,
    /// Files it sees: here, and in the container.
    pub files: Vec<(PathBuf, &'static str)>,
}

impl Default for Networks {
    fn default() -> Self {
        Self { folder: PathBuf::from(FOLDER), spaces: BTreeMap::new(), leases: 0 }
    }
}

impl Networks {
    /// Puts an adapter into its namespace, which is made if it is the first one there. If its address is
    /// leased, says when it is to be [renewed](Networks::renew).
    pub fn add(&mut self, adapter: &NetworkAdapter) -> Result<Option<Term>, NetworkError> {
        let namespace = key(&adapter.namespace_id)?;
        let id = key(&adapter.id)?;
        let entry = self.entry(&namespace)?;
        if entry.adapters.contains_key(&id) {
            return Err(NetworkError::Duplicate { id: adapter.id.clone(), namespace });
        }
        let asked = Instant::now();
        let added = entry.add(&id, adapter);
        self.forget_if_empty(&namespace);
        Ok(self.term(&namespace, &id, asked, added?))
    }

    /// Takes an adapter out of its namespace. There being none is success.
    pub fn remove(&mut self, adapter: &NetworkAdapter) -> Result<(), NetworkError> {
        let namespace = key(&adapter.namespace_id)?;
        let id = key(&adapter.id)?;
        let Some(entry) = self.spaces.get_mut(&namespace) else { return Ok(()) };
        let Some(plan) = entry.adapters.get(&id) else { return Ok(()) };
        entry.space.give_back(plan)?;
        entry.adapters.remove(&id);
        entry.tenants.remove(&id);
        entry.files.write(entry.adapters.values())?;
        self.forget_if_empty(&namespace);
        Ok(())
    }

    /// Lets a container into a namespace, which is made if it is not there: adapters may come later.
    pub fn join(
        &mut self,
        namespace: &str,
        container: &str,
        hostname: &str,
    ) -> Result<Joined, NetworkError> {
        let entry = self.entry(&key(namespace)?)?;
        let files = entry.files.of_container(container, hostname, entry.adapters.values())?;
        Ok(Joined { namespace: entry.space.path().to_owned(), files })
    }

    /// Whether there is such a namespace.
    pub fn knows(&self, namespace: &str) -> bool {
        self.spaces.contains_key(&namespace.to_ascii_lowercase())
    }

    /// A container is gone.
    pub fn leave(&mut self, container: &str) {
        let of = self.spaces.iter().find(|(_, entry)| entry.files.has(container));
        let Some(namespace) = of.map(|(namespace, _)| namespace.clone()) else { return };
        if let Some(entry) = self.spaces.get_mut(&namespace) {
            entry.files.forget(container);
        }
        self.forget_if_empty(&namespace);
    }

    fn entry(&mut self, namespace: &str) -> Result<&mut Entry, NetworkError> {
        use std::collections::btree_map::Entry as Place;
        match self.spaces.entry(namespace.to_owned()) {
            Place::Occupied(there) => Ok(there.into_mut()),
            Place::Vacant(place) => {
                let folder = self.folder.join(namespace);
                let space = Space::create(&folder)?;
                let files = Files::new(folder);
                Ok(place.insert(Entry {
                    space,
                    adapters: BTreeMap::new(),
                    tenants: BTreeMap::new(),
                    files,
                }))
            }
        }
    }

    fn forget_if_empty(&mut self, namespace: &str) {
        let is_empty = |entry: &Entry| entry.adapters.is_empty() && entry.files.is_unused();
        if self.spaces.get(namespace).is_some_and(is_empty)
            && let Some(entry) = self.spaces.remove(namespace)
        {
            entry.space.remove();
        }
    }
}

impl Entry {
    /// What it is by the host's word alone.
    fn add(&mut self, id: &str, adapter: &NetworkAdapter) -> Result<Plan, NetworkError> {
        // The second and later ones must not take the default route from the first.
        let position = if self.adapters.is_empty() { Position::First } else { Position::Later };
        let taken: Vec<u32> = self.adapters.values().flat_map(Plan::tables).collect();
        let mut plan = Plan::of(adapter, position, &taken)?;
        let device = space::await_device(&plan.mac, APPEAR_TIMEOUT)?;
        if plan.name.is_empty() {
            let taken = |name: &String| self.adapters.values().any(|other| other.name == *name);
            let mut names = (0_u32..).map(|n| format!("eth{n}"));
            plan.name = names.find(|name| !taken(name)).unwrap_or_default();
        }
        let given = plan.clone();
        self.space.take(&device, &mut plan)?;
        self.adapters.insert(id.to_owned(), plan);
        if let Err(error) = self.files.write(self.adapters.values()) {
            if let Some(plan) = self.adapters.remove(id) {
                // The host unplugs it next, wherever it is; the first error is what counts.
                drop(self.space.give_back(&plan));
            }
            return Err(error);
        }
        Ok(given)
    }
}

/// An id as it is compared, and as a folder is named.
fn key(id: &str) -> Result<String, NetworkError> {
    if !crate::container::is_valid_id(id) {
        return Err(NetworkError::Id { id: id.to_owned() });
    }
    Ok(id.to_ascii_lowercase())
}

/// Where in a namespace's folder the namespace itself is.
fn mount_of(folder: &Path) -> PathBuf {
    folder.join("net")
}
