//! Endpoints on their way in and out.

use coracle_bridge::message::{NetworkAdapter, Resource, Verb};
use coracle_vmm::{Device, Nic as Card, NicSource, VmmError};

use super::spaces::{Nic, key};
use super::{Carrier, Endpoint};
use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, locked};
use crate::modify::ModifyError;

impl Machine {
    pub(super) fn add_net_ns(&self, id: &str) -> Result<()> {
        self.running_guest("add a network namespace")?;
        locked(&self.spaces).add(id)
    }

    /// Returns the keys of those that were added, which are all that were not there before.
    pub(super) async fn add_endpoints(
        &self,
        namespace: &str,
        endpoints: &[Endpoint],
    ) -> Result<Vec<String>> {
        self.running_guest("add network endpoints")?;
        let _turn = self.network_turn().await;
        locked(&self.spaces).of(namespace)?;
        let mut added = Vec::new();
        for endpoint in endpoints {
            match self.add_endpoint(namespace, endpoint).await {
                Ok(true) => added.push(key(&endpoint.described.id)),
                Ok(false) => {}
                Err(error) => {
                    let undo = self.remove_all(namespace, added.iter().rev());
                    if let Err(undoing) = undo.await {
                        tracing::error!(error = %undoing, "cannot undo what came before a failure");
                    }
                    return Err(error);
                }
            }
        }
        Ok(added)
    }

    async fn add_endpoint(&self, namespace: &str, endpoint: &Endpoint) -> Result<bool> {
        let described = &endpoint.described;
        if matches!(endpoint.carrier, Carrier::VhostUser(_)) && !self.host.share_memory {
            return Err(UvmError::MemoryNotShared);
        }
        let reserved =
            locked(&self.spaces).reserve(namespace, &described.id, &described.mac_address)?;
        let Some(nic) = reserved else { return Ok(false) };
        let failed = |source| UvmError::Modify {
            operation: "failed to add the network endpoint",
            object: described.id.clone(),
            source,
        };
        let passed = endpoint.carrier.source().map_err(|source| UvmError::Endpoint {
            id: described.id.clone(),
            why: format!("cannot pass on its descriptor: {source}"),
        })?;
        let card = Card { id: nic.device(), mac: nic.mac, source: passed };
        locked(&self.spaces).arrive(namespace, &described.id, nic.clone());
        let plugged = async {
            self.intend("add a network endpoint").await?;
            let plugged = self.vm.plug(Device::Nic(card)).await;
            plugged.map_err(|error| failed(ModifyError::Adding(error)))
        };
        if let Err(error) = plugged.await {
            locked(&self.spaces).forget(namespace, &described.id);
            self.note().await;
            return Err(error);
        }
        if self.guest_knows_networks() {
            let adapter = adapter(namespace, &nic, endpoint);
            if let Err(source) = self.ask_guest(Verb::Add, Resource::Network(adapter)).await {
                let undone = self.vm.unplug(&nic.device(), self.host.cleanup_timeout).await;
                if let Err(error) = undone {
                    tracing::error!(%error, "a network card the guest refuses stays plugged in");
                }
                locked(&self.spaces).forget(namespace, &described.id);
                self.note().await;
                return Err(failed(source));
            }
        }
        locked(&self.spaces).settle(namespace, &described.id);
        self.note().await;
        Ok(true)
    }

    pub(super) async fn remove_endpoints(
        &self,
        namespace: &str,
        endpoints: &[String],
    ) -> Result<()> {
        self.running_guest("remove network endpoints")?;
        let _turn = self.network_turn().await;
        locked(&self.spaces).of(namespace)?;
        self.remove_all(namespace, endpoints.iter()).await
    }

    /// Takes away endpoints that were on their way in or out when this VM's former owner died.
    pub(crate) async fn remove_leftovers(
        &self,
        namespace: &str,
        endpoints: &[String],
    ) -> Result<()> {
        for endpoint in endpoints {
            let nic = locked(&self.spaces).of(namespace)?.get(endpoint).cloned();
            if let Some(nic) = nic {
                let adapter = NetworkAdapter {
                    namespace_id: key(namespace),
                    id: nic.id.to_string(),
                    ..NetworkAdapter::default()
                };
                self.forget_in_guest(endpoint, Resource::Network(adapter)).await;
                self.unplug_leftover(&nic.device()).await;
            }
            locked(&self.spaces).forget(namespace, endpoint);
        }
        Ok(())
    }

    pub(super) async fn remove_net_ns(&self, namespace: &str) -> Result<()> {
        self.running_guest("remove a network namespace")?;
        let _turn = self.network_turn().await;
        let endpoints: Vec<String> = match locked(&self.spaces).of(namespace) {
            Ok(there) => there.keys().cloned().collect(),
            // As the seed has it.
            Err(_) => return Ok(()),
        };
        let removed = self.remove_all(namespace, endpoints.iter()).await;
        locked(&self.spaces).remove(namespace);
        removed
    }

    /// Removes what is there of these; goes on after a failure and tells the first.
    async fn remove_all(
        &self,
        namespace: &str,
        endpoints: impl Iterator<Item = &String>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for endpoint in endpoints {
            let nic = locked(&self.spaces).of(namespace)?.get(endpoint).cloned();
            let Some(nic) = nic else { continue };
            locked(&self.spaces).leave(namespace, endpoint);
            let removed = async {
                self.intend("remove a network endpoint").await?;
                self.remove_endpoint(namespace, endpoint, &nic).await
            };
            match removed.await {
                Ok(()) => locked(&self.spaces).forget(namespace, endpoint),
                Err(error) => {
                    locked(&self.spaces).settle(namespace, endpoint);
                    outcome = outcome.and(Err(error));
                }
            }
            self.note().await;
        }
        outcome
    }

    async fn remove_endpoint(&self, namespace: &str, endpoint: &str, nic: &Nic) -> Result<()> {
        let failed = |source| UvmError::Modify {
            operation: "failed to remove the network endpoint",
            object: endpoint.to_owned(),
            source,
        };
        if self.guest_knows_networks() {
            // By the card's id: the seed sent the endpoint's, by which no guest finds it.
            let adapter = NetworkAdapter {
                namespace_id: key(namespace),
                id: nic.id.to_string(),
                ..NetworkAdapter::default()
            };
            let asked = self.ask_guest(Verb::Remove, Resource::Network(adapter)).await;
            asked.map_err(failed)?;
        }
        match self.vm.unplug(&nic.device(), self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => Ok(()),
            Err(error) => Err(failed(ModifyError::Removing(error))),
        }
    }

    /// Waits for the changes before this one. Cancel safe.
    async fn network_turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // Never closed.
        self.network_turn.acquire().await.ok()
    }

    /// A guest that does not is given the card, and finds out by itself.
    fn guest_knows_networks(&self) -> bool {
        self.capabilities.get().is_some_and(|(_, can)| can.namespace_add_request_supported)
    }
}

impl Carrier {
    fn source(&self) -> std::io::Result<NicSource> {
        Ok(match self {
            Self::Tap(tap) => NicSource::Tap(tap.try_clone()?),
            Self::VhostUser(server) => NicSource::VhostUser(server.try_clone()?),
            Self::User(network) => NicSource::User(network.clone()),
        })
    }
}

/// What the guest is told.
fn adapter(namespace: &str, nic: &Nic, endpoint: &Endpoint) -> NetworkAdapter {
    let described = &endpoint.described;
    NetworkAdapter {
        namespace_id: key(namespace),
        id: nic.id.to_string(),
        mac_address: described.mac_address.clone(),
        ip_address: described.ip_address.clone(),
        prefix_length: described.prefix_length,
        gateway_address: described.gateway_address.clone(),
        dns_suffix: described.dns_suffix.clone(),
        dns_server_list: described.dns_server_list.clone(),
        enable_low_metric: described.enable_low_metric,
        encap_overhead: described.encap_overhead,
        coracle: Some(endpoint.extra.clone()).filter(|extra| *extra != Default::default()),
    }
}
