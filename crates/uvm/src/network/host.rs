//! Endpoints as the host has them, for who has to give them back (seed `NetworkEndpoints`).

use std::sync::Arc;

use async_trait::async_trait;

/// Who keeps endpoints and namespaces on the host: the Windows host's network service, or what an
/// embedder has instead.
#[async_trait]
pub trait HostNetwork: std::fmt::Debug + Send + Sync {
    /// Takes an endpoint out of a namespace.
    async fn detach(&self, endpoint: &str, namespace: &str) -> Result<(), HostNetworkError>;

    /// Deletes a namespace.
    async fn delete_namespace(&self, namespace: &str) -> Result<(), HostNetworkError>;
}

/// The host could not do it.
#[derive(Debug, thiserror::Error)]
pub enum HostNetworkError {
    /// There is no such endpoint or namespace.
    #[error("there is no {what} {id}")]
    NotFound {
        /// `endpoint` or `namespace`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// Anything else.
    #[error("cannot {operation} {id}")]
    Failed {
        /// What was done.
        operation: &'static str,
        /// To what.
        id: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The endpoints of a network namespace (seed `NetworkEndpoints`).
#[derive(Debug, Clone)]
pub struct NetworkEndpoints {
    /// Their ids.
    #[doc(alias = "EndpointIDs")]
    pub endpoint_ids: Vec<String>,
    /// The namespace they belong to.
    pub namespace: String,
    host: Arc<dyn HostNetwork>,
}

impl NetworkEndpoints {
    /// Endpoints that `host` keeps.
    pub fn new(namespace: String, endpoint_ids: Vec<String>, host: Arc<dyn HostNetwork>) -> Self {
        Self { endpoint_ids, namespace, host }
    }

    /// Takes every endpoint out of the namespace, then deletes the namespace. What is not there any
    /// more is fine. The VM is not asked.
    ///
    /// # Errors
    /// The first other failure, which ends it; it can be tried again.
    #[doc(alias = "Release")]
    pub async fn release(&self) -> Result<(), HostNetworkError> {
        for endpoint in &self.endpoint_ids {
            match self.host.detach(endpoint, &self.namespace).await {
                Ok(()) => {}
                Err(error @ HostNetworkError::NotFound { .. }) => {
                    tracing::warn!(endpoint, namespace = self.namespace, %error, "it is gone already");
                }
                Err(error) => return Err(error),
            }
        }
        match self.host.delete_namespace(&self.namespace).await {
            Ok(()) | Err(HostNetworkError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Knows some endpoints, and fails for one.
    #[derive(Debug, Default)]
    struct Service {
        done: Mutex<Vec<String>>,
        broken: Mutex<Option<&'static str>>,
    }

    #[async_trait]
    impl HostNetwork for Service {
        async fn detach(&self, endpoint: &str, namespace: &str) -> Result<(), HostNetworkError> {
            if endpoint == "gone" {
                return Err(HostNetworkError::NotFound { what: "endpoint", id: endpoint.into() });
            }
            if *self.broken.lock().unwrap() == Some(endpoint) {
                let (operation, id) = ("detach", endpoint.to_owned());
                return Err(HostNetworkError::Failed { operation, id, source: "busy".into() });
            }
            self.done.lock().unwrap().push(format!("{endpoint} of {namespace}"));
            Ok(())
        }

        async fn delete_namespace(&self, namespace: &str) -> Result<(), HostNetworkError> {
            self.done.lock().unwrap().push(namespace.to_owned());
            Err(HostNetworkError::NotFound { what: "namespace", id: namespace.into() })
        }
    }

    #[tokio::test]
    async fn release_gives_back_endpoints_then_the_namespace_and_minds_only_real_failures() {
        let service = Arc::new(Service::default());
        let ids = ["a", "gone", "b"].map(str::to_owned).to_vec();
        let endpoints = NetworkEndpoints::new("n".to_owned(), ids, service.clone());
        *service.broken.lock().unwrap() = Some("b");
        let error = endpoints.release().await.unwrap_err();
        assert_eq!(error.to_string(), "cannot detach b");
        assert_eq!(*service.done.lock().unwrap(), ["a of n"]);
        *service.broken.lock().unwrap() = None;
        endpoints.release().await.unwrap();
        assert_eq!(*service.done.lock().unwrap(), ["a of n", "a of n", "b of n", "n"]);
    }
}
