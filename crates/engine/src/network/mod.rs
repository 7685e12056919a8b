//! A sandbox's networks: from what was asked for to a card in the guest, and all the way back.
//!
//! ```text
//!   join (host: address, rules, tap; or a namespace's devices)  ─► attach (VM: card, guest: namespace)
//!   detach (guest lets go, card out) ─► leave (host: rules, tap, names, ports; or what plugins made)
//! ```
//!
//! Joining needs no VM, so a launch does it while its VM boots. Whatever is joined is in the table, and
//! in a record that outlives us, before anything else happens, so that a release finds it. All
//! containers of a sandbox are in one network namespace of the guest, named after the sandbox; without
//! any network it has `lo` alone.

mod adopt;
mod endpoint;
mod host;
mod persisted;
mod spec;
mod user;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_net::NetError;
use coracle_net::private::{NetworkRecord, Networks as Records};
use coracle_uvm::network::Endpoint;
use coracle_uvm::{UtilityVm, UvmError};

use crate::error::Error;
use crate::ledger::Ledger;
use crate::record::SandboxRecord;
use crate::root::Root;
use crate::run_dir;
use host::{HostSide, Hosts};

pub use adopt::SavedNetwork;
pub use coracle_net::egress::Egress;
pub use coracle_net::link::{Traffic, parse_mac};
pub use coracle_net::private::{Lease, NetworkSpec};
pub use coracle_net::publish::Published;
pub use coracle_net::rates::Rates;
pub use coracle_net::rules::has_nft;
pub use coracle_net::{dns, forward, process};
pub use persisted::{endpoint_of, persisted};
pub use spec::{AttachRequest, Attached, Source};

/// The networks of one sandbox. Cloning gives another handle.
#[derive(Debug, Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sandbox: String,
    hosts: Hosts,
    ledger: Option<Ledger>,
    table: Mutex<Vec<Entry>>,
    /// One change at a time.
    turn: tokio::sync::Semaphore,
}

/// A network the sandbox has joined.
#[derive(Debug)]
struct Entry {
    network: String,
    host: HostSide,
    cards: Vec<Card>,
    in_vm: bool,
}

/// One card on it.
///
/// Its tap stays open here until the network is left: were the VM's monitor the last to close it, the
/// kernel would take its time for the device while the monitor ends, and whoever waits for that with it.
#[derive(Debug)]
struct Card {
    shown: Attached,
    endpoint: Endpoint,
}

/// The records of all private networks of a root directory.
fn records(root: &Root, helper: Option<&Path>) -> Records {
    Records::at(root.networks(), helper.map(Path::to_owned))
}

/// All private networks, by name.
///
/// # Errors
/// A record cannot be read.
pub fn all(root: &Root) -> Result<Vec<NetworkRecord>, Error> {
    records(root, None).all().map_err(|source| failed("list the networks", source))
}

/// One private network.
///
/// # Errors
/// There is none of this name.
pub fn one(root: &Root, name: &str) -> Result<NetworkRecord, Error> {
    records(root, None).one(name).map_err(|source| failed(format!("show network {name}"), source))
}

/// Takes sandboxes whose owner is dead off all networks. Blocks.
///
/// A sandbox of which something is written down is for whoever recovers it.
pub(crate) fn sweep(root: &Root) {
    let is_kept = |name: &str| run_dir::is_alive(root.run(), name) || root.state(name).exists();
    let swept = records(root, None).sweep(is_kept);
    match swept {
        Ok(names) if names.is_empty() => {}
        Ok(names) => tracing::info!(?names, "taken off their networks: their owners are dead"),
        Err(error) => tracing::warn!(%error, "cannot take the dead off their networks"),
    }
}

/// Undoes what a sandbox whose owner is dead had of others' networks, which its run directory tells.
/// Blocks.
pub(crate) fn undo_leftovers(run_dir: &Path) {
    for error in host::undo_leftovers(run_dir) {
        tracing::warn!(%error, "cannot undo a network of a dead owner's");
    }
}

/// Leaves every network a sandbox is on, whatever anybody wrote down of it. Blocks.
pub(crate) fn leave_everything(root: &Root, sandbox: &str) -> Result<(), Error> {
    let hosts = Hosts::new(records(root, None), root.run().to_owned(), sandbox.to_owned());
    hosts.leave_all_but(&[]).map_err(|source| failed("leave the networks", source))
}

impl Networks {
    /// None yet. `helper` is a `coracle` program.
    pub(crate) fn new(
        root: &Root,
        sandbox: &str,
        helper: Option<&Path>,
        ledger: Option<Ledger>,
    ) -> Self {
        let inner = Inner {
            sandbox: sandbox.to_owned(),
            hosts: Hosts::new(records(root, helper), root.run().to_owned(), sandbox.to_owned()),
            ledger,
            table: Mutex::default(),
            turn: tokio::sync::Semaphore::new(1),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The namespace of the sandbox's containers.
    pub(crate) fn namespace(&self) -> &str {
        &self.inner.sandbox
    }

    /// Joins a network: all that can be done without a VM.
    pub(crate) async fn join(&self, request: &AttachRequest) -> Result<(), Error> {
        request.check()?;
        let Some(network) = request.source.network() else { return Ok(()) };
        if self.locked().iter().any(|entry| entry.network == network) {
            return Err(Error::NetworkTaken { name: self.inner.sandbox.clone(), network });
        }
        let (networks, request, name) = (self.clone(), request.clone(), network.clone());
        let joined = blocking(move || {
            let (host, cards) = networks.inner.hosts.join(&network, &request)?;
            networks.locked().push(Entry { network, host, cards, in_vm: false });
            Ok(())
        });
        joined.await.map_err(|source| failed(format!("join network {name}"), source))?;
        // Without a note of it, a later owner would leave it again.
        let written = self.write_down().await;
        if written.is_err()
            && let Err(undoing) = self.leave(&name).await
        {
            tracing::error!(error = %undoing, "cannot leave a network that is not written down");
        }
        written
    }

    /// Writes down which networks the sandbox is on.
    async fn write_down(&self) -> Result<(), Error> {
        let Some(ledger) = &self.inner.ledger else { return Ok(()) };
        let networks = self.clone();
        let saved = move |record: &mut SandboxRecord| {
            record.networks = networks.locked().iter().map(SavedNetwork::of).collect();
        };
        ledger.update(saved).await
    }

    /// The same when it has happened already.
    async fn note(&self) {
        if let Err(error) = self.write_down().await {
            tracing::error!(%error, "cannot write down the networks");
        }
    }

    /// Puts every network that was joined into the VM, which runs.
    pub(crate) async fn attach(&self, vm: &UtilityVm) -> Result<(), Error> {
        let endpoints = |entry: &Entry| -> Vec<Endpoint> {
            entry.cards.iter().map(|card| card.endpoint.clone()).collect()
        };
        let waiting: Vec<(String, Vec<Endpoint>)> = self
            .locked()
            .iter()
            .filter(|entry| !entry.in_vm)
            .map(|entry| (entry.network.clone(), endpoints(entry)))
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let vm_failed = |network: &str, source| Error::Endpoint {
            what: "attach",
            network: network.to_owned(),
            source: Box::new(source),
        };
        match vm.add_net_ns(self.namespace()).await {
            Ok(()) | Err(UvmError::NetNsAlreadyAttached) => {}
            Err(source) => return Err(vm_failed(&waiting[0].0, source)),
        }
        for (network, endpoints) in waiting {
            let added = vm.add_endpoints_to_ns(self.namespace(), &endpoints).await;
            added.map_err(|source| vm_failed(&network, source))?;
            for entry in self.locked().iter_mut().filter(|entry| entry.network == network) {
                entry.in_vm = true;
            }
            self.note().await;
        }
        Ok(())
    }

    /// Joins and attaches one more network.
    ///
    /// # Errors
    /// The sandbox is on it; the host, the VM or the guest refuses: nothing is left then.
    pub async fn add(
        &self,
        vm: &UtilityVm,
        request: AttachRequest,
    ) -> Result<Vec<Attached>, Error> {
        let (networks, vm) = (self.clone(), vm.clone());
        // To the end, whoever goes away.
        let done = tokio::spawn(async move {
            let _turn = networks.inner.turn.acquire().await;
            networks.join(&request).await?;
            let network = request.source.network().unwrap_or_default();
            if let Err(error) = networks.attach(&vm).await {
                if let Err(undoing) = networks.leave(&network).await {
                    tracing::error!(error = %undoing, "cannot leave a network that does not attach");
                }
                return Err(error);
            }
            Ok(networks.list().into_iter().filter(|there| there.network == network).collect())
        });
        done.await.unwrap_or(Err(Error::Interrupted))
    }

    /// Takes the sandbox off a network.
    ///
    /// # Errors
    /// It is not on it; the guest or the host does not let go: it can be tried again.
    pub async fn remove(&self, vm: &UtilityVm, network: &str) -> Result<(), Error> {
        let (networks, vm, network) = (self.clone(), vm.clone(), network.to_owned());
        let done = tokio::spawn(async move {
            let _turn = networks.inner.turn.acquire().await;
            let described = |entry: &Entry| -> Vec<_> {
                entry.cards.iter().map(|card| card.endpoint.described.clone()).collect()
            };
            let there = networks.locked().iter().find(|e| e.network == network).map(described);
            let described = there.ok_or_else(|| Error::NotOnNetwork {
                name: networks.inner.sandbox.clone(),
                network: network.clone(),
            })?;
            match vm.remove_endpoints_from_ns(networks.namespace(), &described).await {
                Ok(()) | Err(UvmError::NetNsNotFound) => {}
                Err(source) => {
                    if source.is_half_removed() {
                        // The guest has it no more, the host still has. Whoever tries again, or takes
                        // over, finishes it.
                        networks.set_in_vm(&network, false);
                        networks.note().await;
                    }
                    let source = Box::new(source);
                    return Err(Error::Endpoint { what: "detach", network, source });
                }
            }
            networks.leave(&network).await
        });
        done.await.unwrap_or(Err(Error::Interrupted))
    }

    fn set_in_vm(&self, network: &str, in_vm: bool) {
        let mut table = self.locked();
        if let Some(entry) = table.iter_mut().find(|entry| entry.network == network) {
            entry.in_vm = in_vm;
        }
    }

    /// Leaves one network on the host; the VM has let go of it, or is gone.
    async fn leave(&self, network: &str) -> Result<(), Error> {
        let host = {
            let table = self.locked();
            table.iter().find(|entry| entry.network == network).map(|entry| entry.host.clone())
        };
        let Some(host) = host else { return Ok(()) };
        let (networks, name) = (self.clone(), network.to_owned());
        let left = blocking(move || networks.inner.hosts.leave(&name, &host));
        left.await.map_err(|source| failed(format!("leave network {network}"), source))?;
        self.locked().retain(|entry| entry.network != network);
        self.note().await;
        Ok(())
    }

    /// Leaves all of them: the VM is gone. Goes on after a failure and tells the first.
    pub(crate) async fn leave_all(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        let networks: Vec<String> = self.locked().iter().map(|e| e.network.clone()).collect();
        for network in networks {
            outcome = outcome.and(self.leave(&network).await);
        }
        outcome
    }

    /// The cards of the sandbox, and the network each is on.
    pub fn list(&self) -> Vec<Attached> {
        let table = self.locked();
        let there = table.iter().filter(|entry| entry.in_vm);
        there.flat_map(|entry| entry.cards.iter().map(|card| card.shown.clone())).collect()
    }

    /// What the sandbox has sent and received by each card, as the sandbox sees it. QEMU's own network
    /// counts nothing.
    pub(crate) async fn traffic(&self) -> Vec<(String, Traffic)> {
        let with_host = |entry: &Entry| {
            let host = entry.host.clone();
            entry.cards.iter().map(|c| (host.clone(), c.shown.clone())).collect::<Vec<_>>()
        };
        let all: Vec<(HostSide, Attached)> = self.locked().iter().flat_map(with_host).collect();
        let counted = blocking(move || {
            let count = |(host, attached): (HostSide, Attached)| {
                let host = Hosts::traffic(&host, &attached.tap).ok()?;
                // What the host receives the sandbox has sent.
                let traffic = Traffic {
                    rx_bytes: host.tx_bytes,
                    rx_packets: host.tx_packets,
                    rx_dropped: host.tx_dropped,
                    tx_bytes: host.rx_bytes,
                    tx_packets: host.rx_packets,
                    tx_dropped: host.rx_dropped,
                };
                Some((attached.network, traffic))
            };
            Ok(all.into_iter().filter_map(count).collect())
        });
        counted.await.unwrap_or_default()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        // Each change of the table is one call.
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work on the host's network is short, and blocks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| {
        let source = std::io::Error::other("the thread ended before its work");
        Err(NetError::System { what: "work on the host's network", source })
    })
}

fn failed(what: impl Into<String>, source: NetError) -> Error {
    Error::Network { what: what.into(), source: Box::new(source) }
}
