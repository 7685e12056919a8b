//! The host's half of a network a sandbox is on: how it comes about, how it goes, and the record from
//! which a dead owner's is undone.
//!
//! A private network keeps records of its own. What a sandbox has of a namespace or of CNI plugins is
//! told by [`RECORD`] in its run directory, which is written before anything is made.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_net::cni::{Attachment, Cni, Dns};
use coracle_net::endpoint::{self, Carrier, Endpoint as HostEndpoint, Interworking};
use coracle_net::link::{self, Traffic};
use coracle_net::namespace::{self, Namespace};
use coracle_net::private::Networks as Records;
use coracle_net::{NetError, discover};
use serde::{Deserialize, Serialize};

use super::{AttachRequest, Attached, Card, Source, endpoint as card};

/// What a sandbox has of others' networks.
const RECORD: &str = "networks.json";

/// The host's half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum HostSide {
    /// A private network, which knows all about it.
    Private(String),
    /// QEMU's own, of which the host has nothing.
    User,
    /// Devices of somebody's namespace.
    Namespace {
        /// Where it is mounted.
        path: PathBuf,
        /// What was taken of it.
        endpoints: Vec<HostEndpoint>,
    },
    /// Devices that plugins made in a namespace of ours.
    Cni {
        /// The network.
        network: Cni,
        /// For whom.
        attachment: Attachment,
        /// What was taken of it.
        endpoints: Vec<HostEndpoint>,
    },
}

/// Where a sandbox's networks come from.
#[derive(Debug)]
pub(super) struct Hosts {
    records: Records,
    run: PathBuf,
    sandbox: String,
}

impl Hosts {
    pub(super) fn new(records: Records, run: PathBuf, sandbox: String) -> Self {
        Self { records, run, sandbox }
    }

    /// Joins a network; nothing is left of it on failure.
    pub(super) fn join(
        &self,
        network: &str,
        request: &AttachRequest,
    ) -> Result<(HostSide, Vec<Card>), NetError> {
        match &request.source {
            Source::None => Ok((HostSide::Private(String::new()), Vec::new())),
            Source::Private(spec) => {
                let joined = self.records.join(&request.join(&self.sandbox, spec.clone()))?;
                let shown = Attached::private(&joined);
                let endpoint = card::private(joined, request);
                Ok((HostSide::Private(spec.name.clone()), vec![Card { shown, endpoint }]))
            }
            Source::User => Ok((HostSide::User, vec![super::user::card(request)])),
            Source::Namespace(path) => {
                let of = Namespace::open(path)?;
                if of.identity()? == Namespace::current()?.identity()? {
                    let why = "it is this host's own: its devices are not for a sandbox".to_owned();
                    return Err(NetError::Device { name: network.to_owned(), why });
                }
                let host = HostSide::Namespace { path: path.clone(), endpoints: Vec::new() };
                self.take(network, request, &of, &Dns::default(), host)
            }
            Source::Cni(name) => {
                let cni = Cni::find(name)?;
                let attachment = Attachment {
                    // Another root directory may have a sandbox of the same name.
                    container: format!(
                        "coracle-{}-{}",
                        short_hash(&self.run.to_string_lossy()),
                        self.sandbox
                    ),
                    namespace: self.folder().join(format!("netns-{name}")),
                    interface: "eth0".to_owned(),
                };
                let host = HostSide::Cni {
                    network: cni.clone(),
                    attachment: attachment.clone(),
                    endpoints: Vec::new(),
                };
                self.remember(network, Some(&host))?;
                let made = Namespace::create(&attachment.namespace)
                    .and_then(|of| Ok((of, cni.add(&attachment)?)))
                    .and_then(|(of, dns)| self.take(network, request, &of, &dns, host.clone()));
                if made.is_err()
                    && let Err(undoing) = self.leave(network, &host)
                {
                    tracing::error!(error = %undoing, "cannot undo a CNI network");
                }
                made
            }
        }
    }

    /// Takes every device of a namespace.
    fn take(
        &self,
        network: &str,
        request: &AttachRequest,
        of: &Namespace,
        dns: &Dns,
        mut host: HostSide,
    ) -> Result<(HostSide, Vec<Card>), NetError> {
        let devices = of.run(discover::devices)?;
        // Devices of two sandboxes in one namespace must not meet.
        let tag = format!("cor{}-", short_hash(&self.sandbox));
        let mut taken = Vec::new();
        for device in devices.iter().filter(|device| device.mac.is_some()) {
            taken.push((HostEndpoint::of(device, Interworking::TcMirror, &tag)?, device));
        }
        if taken.is_empty() {
            let why = "no device of it can be given to a VM".to_owned();
            return Err(NetError::Device { name: network.to_owned(), why });
        }
        if let HostSide::Namespace { endpoints, .. } | HostSide::Cni { endpoints, .. } = &mut host {
            *endpoints = taken.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        }
        self.remember(network, Some(&host))?;
        let mut cards = Vec::new();
        for (endpoint, device) in taken {
            let made = of.run(|| endpoint::attach(endpoint, device.mtu)).and_then(|attached| {
                let name = &device.name;
                match attached.carrier {
                    Carrier::Tap(tap) => Ok((attached.endpoint, tap)),
                    Carrier::VhostUser(_) | Carrier::Pci(_) | Carrier::None => {
                        Err(NetError::Device {
                            name: name.clone(),
                            why: "a device of hardware is handed over with `--device`".to_owned(),
                        })
                    }
                }
            });
            match made {
                Ok((endpoint, tap)) => {
                    let shown = Attached::of_device(network, device, &endpoint);
                    let endpoint = card::of_device(network, device, tap, request, dns);
                    cards.push(Card { shown, endpoint });
                }
                Err(error) => {
                    // Their taps keep them.
                    drop(cards);
                    if let Err(undoing) = self.leave(network, &host) {
                        tracing::error!(error = %undoing, "cannot give devices back");
                    }
                    return Err(error);
                }
            }
        }
        Ok((host, cards))
    }

    /// Leaves a network. Doing it again does no harm.
    pub(super) fn leave(&self, network: &str, host: &HostSide) -> Result<(), NetError> {
        match host {
            HostSide::User => return Ok(()),
            HostSide::Private(name) => return self.records.leave(name, &self.sandbox),
            HostSide::Namespace { .. } | HostSide::Cni { .. } => undo(host)?,
        }
        self.remember(network, None)
    }

    /// Leaves every network that knows of the sandbox but these: a former owner died on its way in or
    /// out of the others.
    pub(super) fn leave_all_but(&self, known: &[String]) -> Result<(), NetError> {
        let mut outcome = Ok(());
        for network in self.records.all()? {
            if network.leases.contains_key(&self.sandbox) && !known.contains(&network.name) {
                outcome = outcome.and(self.records.leave(&network.name, &self.sandbox));
            }
        }
        for (network, host) in read(&self.folder().join(RECORD)) {
            if !known.contains(&network) {
                outcome = outcome.and(self.leave(&network, &host));
            }
        }
        outcome
    }

    /// What a device of a network has carried, as the host sees it.
    pub(super) fn traffic(host: &HostSide, device: &str) -> Result<Traffic, NetError> {
        match host {
            HostSide::Private(_) | HostSide::User => link::traffic(device),
            HostSide::Namespace { path, .. } => {
                Namespace::open(path)?.run(|| link::traffic(device))
            }
            HostSide::Cni { attachment, .. } => {
                Namespace::open(&attachment.namespace)?.run(|| link::traffic(device))
            }
        }
    }

    fn folder(&self) -> PathBuf {
        self.run.join(&self.sandbox)
    }

    /// Writes down what the sandbox has of a network, or that it has nothing any more.
    fn remember(&self, network: &str, host: Option<&HostSide>) -> Result<(), NetError> {
        let path = self.folder().join(RECORD);
        let mut record = read(&path);
        record.retain(|(name, _)| name != network);
        if let Some(host) = host {
            record.push((network.to_owned(), host.clone()));
        }
        let text = serde_json::to_vec(&record).map_err(|source| NetError::Record {
            what: "write",
            path: path.clone(),
            source,
        })?;
        let draft = path.with_extension("new");
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| NetError::File { what: "write", path, source })
    }
}

fn read(path: &Path) -> Vec<(String, HostSide)> {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Undoes what the record in a dead owner's run directory tells; returns what could not be.
pub(super) fn undo_leftovers(run_dir: &Path) -> Vec<NetError> {
    let record = read(&run_dir.join(RECORD));
    record.iter().filter_map(|(_, host)| undo(host).err()).collect()
}

fn undo(host: &HostSide) -> Result<(), NetError> {
    match host {
        HostSide::Private(_) | HostSide::User => Ok(()),
        HostSide::Namespace { path, endpoints } => give_back(path, endpoints),
        HostSide::Cni { network, attachment, endpoints } => {
            give_back(&attachment.namespace, endpoints)?;
            network.delete(attachment)?;
            namespace::delete(&attachment.namespace)
        }
    }
}

/// A namespace that is gone has taken its devices along.
fn give_back(path: &Path, endpoints: &[HostEndpoint]) -> Result<(), NetError> {
    let Ok(of) = Namespace::open(path) else { return Ok(()) };
    endpoints.iter().try_for_each(|endpoint| of.run(|| endpoint::detach(endpoint)))
}

/// Five digits that tell one name from another.
fn short_hash(text: &str) -> String {
    // FNV-1a: no secret, only a name.
    let hash = text
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{:05x}", hash & 0xf_ffff)
}
