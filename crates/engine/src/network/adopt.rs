//! Networks as they are written down, and those of a VM that was taken over.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_persist::model;
use coracle_uvm::UtilityVm;
use coracle_uvm::network::{AdapterExtra, Carrier, Endpoint};
use coracle_uvm::schema::HnsEndpoint;
use serde::{Deserialize, Serialize};

use super::host::HostSide;
use super::{Attached, Card, Entry, Networks, blocking, persisted};
use crate::ledger::Ledger;
use crate::root::Root;

/// A network of a sandbox as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedNetwork {
    network: String,
    host: HostSide,
    cards: Vec<SavedCard>,
    in_vm: bool,
}

/// A card on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedCard {
    shown: Attached,
    described: HnsEndpoint,
}

impl SavedNetwork {
    pub(super) fn of(entry: &Entry) -> Self {
        let card = |card: &Card| SavedCard {
            shown: card.shown.clone(),
            described: card.endpoint.described.clone(),
        };
        Self {
            network: entry.network.clone(),
            host: entry.host.clone(),
            cards: entry.cards.iter().map(card).collect(),
            in_vm: entry.in_vm,
        }
    }

    fn restore(&self) -> Entry {
        // The VM has descriptors of its own; ours died with the former owner.
        let null = std::fs::File::open("/dev/null").ok();
        let card = |card: &SavedCard| {
            let carrier = null.as_ref().and_then(|null| null.try_clone().ok())?;
            Some(Card {
                shown: card.shown.clone(),
                endpoint: Endpoint {
                    described: card.described.clone(),
                    extra: AdapterExtra::default(),
                    carrier: Carrier::Tap(Arc::new(carrier.into())),
                },
            })
        };
        Entry {
            network: self.network.clone(),
            host: self.host.clone(),
            cards: self.cards.iter().filter_map(card).collect(),
            in_vm: self.in_vm,
        }
    }

    /// Its cards as they are shown.
    pub fn shown(&self) -> Vec<Attached> {
        self.cards.iter().map(|card| card.shown.clone()).collect()
    }

    /// The namespace of the host it takes its devices from, and whether it was made for it.
    pub fn namespace(&self) -> Option<(PathBuf, bool)> {
        match &self.host {
            HostSide::Private(_) | HostSide::User => None,
            HostSide::Namespace { path, .. } => Some((path.clone(), false)),
            HostSide::Cni { attachment, .. } => Some((attachment.namespace.clone(), true)),
        }
    }

    /// Its endpoints as Kata has them; QEMU's own network has none.
    pub fn persisted(&self) -> Vec<model::NetworkEndpoint> {
        match &self.host {
            HostSide::User => Vec::new(),
            HostSide::Namespace { endpoints, .. } | HostSide::Cni { endpoints, .. } => {
                endpoints.iter().map(persisted).collect()
            }
            HostSide::Private(_) => {
                let tap = |card: &SavedCard| {
                    let shown = &card.shown;
                    let mut saved = model::NetworkEndpoint {
                        kind: model::EndpointKind::Tap,
                        ..model::NetworkEndpoint::default()
                    };
                    let tap_interface = model::TapInterface {
                        name: shown.network.clone(),
                        tap_iface: model::NetworkInterface {
                            name: shown.tap.clone(),
                            hard_addr: shown.mac.clone(),
                            ..model::NetworkInterface::default()
                        },
                        ..model::TapInterface::default()
                    };
                    saved.tap = Some(model::TapEndpoint { tap_interface });
                    saved
                };
                self.cards.iter().map(tap).collect()
            }
        }
    }
}

impl Networks {
    /// The networks that were written down, of a VM that was adopted. Those of which the VM has not all
    /// cards, because the former owner died on their way in or out, are left, and so is what it had
    /// joined without writing that down.
    pub(crate) async fn adopt(
        root: &Root,
        sandbox: &str,
        vm: &UtilityVm,
        ledger: Ledger,
        saved: &[SavedNetwork],
    ) -> Self {
        let helper = ledger.look(|record| record.order.sandbox.helper.clone());
        let networks = Self::new(root, sandbox, helper.as_deref(), Some(ledger));
        networks.locked().extend(saved.iter().map(SavedNetwork::restore));
        let in_vm = vm.network_namespaces().remove(&sandbox.to_ascii_lowercase());
        let in_vm = in_vm.unwrap_or_default();
        let is_half = |known: &&SavedNetwork| {
            let mut ids = known.cards.iter().map(|c| c.described.id.to_ascii_lowercase());
            !known.in_vm || !ids.all(|id| in_vm.contains(&id))
        };
        let half: Vec<String> =
            saved.iter().filter(is_half).map(|known| known.network.clone()).collect();
        for network in half {
            if let Err(error) = networks.leave(&network).await {
                tracing::error!(network, %error, "a network on its way in or out is not left");
            }
        }
        networks.leave_strays(vm).await;
        networks.note().await;
        networks
    }

    /// Leaves networks that no line of the table tells of, and takes their cards out.
    async fn leave_strays(&self, vm: &UtilityVm) {
        let known: Vec<String> = {
            let table = self.locked();
            let cards = table.iter().flat_map(|entry| &entry.cards);
            cards.map(|card| card.endpoint.described.id.to_ascii_lowercase()).collect()
        };
        let there = vm.network_namespaces().remove(&self.namespace().to_ascii_lowercase());
        let strays: Vec<HnsEndpoint> = there
            .into_iter()
            .flatten()
            .filter(|id| !known.contains(id))
            .map(|id| HnsEndpoint { id, ..HnsEndpoint::default() })
            .collect();
        if !strays.is_empty()
            && let Err(error) = vm.remove_endpoints_from_ns(self.namespace(), &strays).await
        {
            tracing::error!(%error, "cards nobody was told of stay");
        }
        let names: Vec<String> = self.locked().iter().map(|entry| entry.network.clone()).collect();
        let inner = self.inner.clone();
        let left = blocking(move || inner.hosts.leave_all_but(&names)).await;
        if let Err(error) = left {
            tracing::error!(%error, "networks nobody was told of are not left");
        }
    }
}
