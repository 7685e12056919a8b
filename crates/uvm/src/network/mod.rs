//! Network namespaces of the guest and the endpoints in them.
//!
//! ```text
//!   add_net_ns ─► add_endpoints_to_ns: card plugged in ─► guest moves it into the namespace
//!   remove_endpoints_from_ns, remove_net_ns: guest lets go ─► card unplugged
//! ```
//!
//! A namespace is the host's bookkeeping; the guest makes its own with the first endpoint. Ids are
//! compared without regard to case. Adding several endpoints is all or nothing, unlike in the seed,
//! which leaves what came before a failure; removing goes on after a failure, tells the first, and can
//! be tried again. A VM has one such change at a time.
//!
//! What carries an endpoint's packets on the host, and whether it ends in a bridge or in another
//! namespace, is the caller's business: the VM is given an open descriptor.

mod attach;
mod host;
mod spaces;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_bridge::message::CoracleAdapter;

use crate::errors::Result;
use crate::lifecycle::UtilityVm;
use crate::plug::to_the_end;
use crate::schema::HnsEndpoint;

pub use coracle_bridge::message::{
    CoracleAdapter as AdapterExtra, CoracleNeighbour as AdapterNeighbour,
    CoracleRoute as AdapterRoute,
};
pub use coracle_vmm::UserNetwork;
pub use host::{HostNetwork, HostNetworkError, NetworkEndpoints};
pub(crate) use spaces::Spaces;

/// An endpoint to add.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// What it is, for the guest.
    pub described: HnsEndpoint,
    /// What the seed's description has no room for: more addresses, routes, the MTU, a name.
    pub extra: CoracleAdapter,
    /// What carries its packets on this host.
    pub carrier: Carrier,
}

/// What carries the packets of an endpoint. The VM is given a descriptor of its own: the caller may
/// close this one once the endpoint is added.
#[derive(Debug, Clone)]
pub enum Carrier {
    /// An opened tap or macvtap device, with `IFF_VNET_HDR`.
    Tap(Arc<OwnedFd>),
    /// The socket on which a vhost-user-net server listens, opened with `O_PATH`; the VM must share its
    /// memory.
    VhostUser(Arc<OwnedFd>),
    /// The monitor's own made-up network, which needs no right on the host.
    User(UserNetwork),
}

impl UtilityVm {
    /// Adds a network namespace to the guest.
    ///
    /// # Errors
    /// [`crate::UvmError::NetNsAlreadyAttached`]; the VM does not run.
    #[doc(alias = "AddNetNS")]
    pub async fn add_net_ns(&self, id: &str) -> Result<()> {
        self.machine.add_net_ns(id)?;
        self.machine.note().await;
        Ok(())
    }

    /// Removes the namespace and all its endpoints. There being none is success. What could be removed
    /// is removed whatever fails, and the rest can be tried again.
    ///
    /// # Errors
    /// The first endpoint that could not be removed.
    #[doc(alias = "RemoveNetNS")]
    pub async fn remove_net_ns(&self, id: &str) -> Result<()> {
        let (machine, id) = (self.machine.clone(), id.to_owned());
        to_the_end(async move { machine.remove_net_ns(&id).await }, |()| async {}).await
    }

    /// Adds endpoints to a namespace, in this order: the first has the default route. One that is
    /// there already is skipped. All of them are added, or none.
    ///
    /// Cancel safe: a caller that goes away leaves none of them.
    ///
    /// # Errors
    /// [`crate::UvmError::NetNsNotFound`]; an endpoint without a hardware address, or with one that
    /// the VM has already; [`crate::UvmError::MemoryNotShared`] for one on a vhost-user server; the host
    /// or the guest refuses.
    #[doc(alias = "AddEndpointsToNS")]
    pub async fn add_endpoints_to_ns(&self, id: &str, endpoints: &[Endpoint]) -> Result<()> {
        let (machine, id, endpoints) = (self.machine.clone(), id.to_owned(), endpoints.to_vec());
        let undo = (self.machine.clone(), id.clone());
        let add = async move { machine.add_endpoints(&id, &endpoints).await };
        let added = to_the_end(add, |keys: Vec<String>| async move {
            let (machine, id) = undo;
            if let Err(error) = machine.remove_endpoints(&id, &keys).await {
                tracing::error!(%error, "network endpoints nobody wants stay");
            }
        });
        added.await.map(drop)
    }

    /// Removes endpoints from a namespace. One that is not there is skipped.
    ///
    /// # Errors
    /// [`crate::UvmError::NetNsNotFound`]; the first endpoint that could not be removed, the others
    /// are: it can be tried again.
    #[doc(alias = "RemoveEndpointsFromNS")]
    pub async fn remove_endpoints_from_ns(
        &self,
        id: &str,
        endpoints: &[HnsEndpoint],
    ) -> Result<()> {
        let (machine, id) = (self.machine.clone(), id.to_owned());
        let keys: Vec<String> = endpoints.iter().map(|e| spaces::key(&e.id)).collect();
        let remove = async move { machine.remove_endpoints(&id, &keys).await };
        to_the_end(remove, |()| async {}).await
    }

    /// The namespaces, and the ids of their endpoints, in lower case.
    pub fn network_namespaces(&self) -> std::collections::BTreeMap<String, Vec<String>> {
        crate::lifecycle::locked(&self.machine.spaces).list()
    }
}
