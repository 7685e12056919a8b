//! Network adapters of the VM, and the namespaces containers run in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::NetworkAdapter;
use coracle_bridge::server::ServiceError;
use libcontainer::oci_spec::runtime::{
    LinuxNamespaceBuilder, LinuxNamespaceType, MountBuilder, Spec,
};

use super::Agent;
use super::errors::failed;
use super::modify::blocking;
use crate::container::bundle;
use crate::network::{Joined, NetworkError, Networks, Term};

/// What says that a container is a sandbox, whose namespace must be there before it.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

impl Agent {
    pub(super) async fn add_adapter(&self, adapter: NetworkAdapter) -> Result<(), ServiceError> {
        self.mounter.load_module("virtio_net");
        if let Some(term) = self.with_networks(move |networks| networks.add(&adapter)).await? {
            tokio::spawn(keep_lease(Arc::clone(&self.networks), term));
        }
        Ok(())
    }

    pub(super) async fn remove_adapter(&self, adapter: NetworkAdapter) -> Result<(), ServiceError> {
        self.with_networks(move |networks| networks.remove(&adapter)).await
    }

    /// Puts a new container into the network namespace its specification names, if it names one.
    pub(super) async fn join_network(&self, id: &str, spec: &mut Spec) -> Result<(), ServiceError> {
        let Some(namespace) = namespace_of(spec) else { return Ok(()) };
        let is_sandbox = spec
            .annotations()
            .as_ref()
            .is_some_and(|all| all.get(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox"));
        let hostname = spec.hostname().clone().unwrap_or_default();
        let container = id.to_owned();
        let joined = self
            .with_networks(move |networks| {
                if is_sandbox && !networks.knows(&namespace) {
                    return Ok(None);
                }
                networks.join(&namespace, &container, &hostname).map(Some)
            })
            .await?;
        let joined = joined.ok_or_else(|| ServiceError::from(Hresult::NOT_FOUND))?;
        settle(spec, id, joined).map_err(|error| failed(&error))
    }

    /// A container is gone.
    pub(super) async fn leave_network(&self, id: &str) {
        let container = id.to_owned();
        let left = self.with_networks(move |networks| {
            networks.leave(&container);
            Ok(())
        });
        if let Err(error) = left.await {
            tracing::warn!(container = id, ?error, "cannot take a container out of its network");
        }
    }

    async fn with_networks<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Networks) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let networks = Arc::clone(&self.networks);
        blocking(move || {
            // Each change of the table is one step; a thread that panicked left it whole.
            let mut networks = networks.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut networks).map_err(|error| failed(&error))
        })
        .await
    }
}

/// Renews an address until its adapter is gone, which is seen when it is next due.
async fn keep_lease(networks: Arc<Mutex<Networks>>, mut term: Term) {
    loop {
        tokio::time::sleep_until(term.due.into()).await;
        let networks = Arc::clone(&networks);
        let renewed = tokio::task::spawn_blocking(move || {
            networks.lock().unwrap_or_else(PoisonError::into_inner).renew(term)
        });
        match renewed.await {
            Ok(Some(next)) => term = next,
            Ok(None) | Err(_) => return,
        }
    }
}

/// The namespace a specification names, in the member hcsshim uses.
fn namespace_of(spec: &Spec) -> Option<String> {
    let network = spec.windows().as_ref()?.network().as_ref()?;
    network.network_namespace().clone().filter(|id| !id.is_empty())
}

/// Has the container enter the namespace and see its files, but where the host put something else.
fn settle(
    spec: &mut Spec,
    id: &str,
    joined: Joined,
) -> Result<(), libcontainer::oci_spec::OciSpecError> {
    let own = LinuxNamespaceBuilder::default()
        .typ(LinuxNamespaceType::Network)
        .path(joined.namespace)
        .build()?;
    let root = spec.root().as_ref().map(|root| (root.path().clone(), root.readonly()));
    let (root, read_only) = root.unwrap_or_default();
    let root = bundle(id).join(root);
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        namespaces.push(own);
        linux.set_namespaces(Some(namespaces));
    }
    // It is the agent's business, and libcontainer's validation does not know it.
    spec.set_windows(None);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (source, destination) in joined.files {
        let taken = mounts.iter().any(|mount| mount.destination() == Path::new(destination));
        if taken || (read_only == Some(true) && !is_there(&root, destination)) {
            continue;
        }
        let options = ["bind", "rprivate"].map(str::to_owned);
        let mount = MountBuilder::default()
            .destination(destination)
            .typ("bind")
            .source(source)
            .options(options)
            .build()?;
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Whether a read-only root has something at a path, so that it can be mounted on. A link is not
/// followed: where it leads is the container's business.
fn is_there(root: &Path, path: &str) -> bool {
    let path: PathBuf = root.join(path.trim_start_matches('/'));
    std::fs::symlink_metadata(path).is_ok()
}
