//! The connection to a server, for callers that wait.

use super::EtcdPlace;
use crate::driver::DriverError;
use etcd_client::{Client, ConnectOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A connection, and what drives it. Tasks of the connection only run while someone waits.
#[derive(Clone)]
pub(super) struct Wire {
    runtime: Arc<Runtime>,
    client: Client,
    server: String,
    timeout: Duration,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Wire {
    /// Connects, and asks something, since a connection alone proves nothing.
    pub(super) fn connect(place: &EtcdPlace) -> Result<Self, DriverError> {
        let server = place.endpoints.join(", ");
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DriverError::Server {
            server: server.clone(),
            verb: "answer",
            what: "at all".to_owned(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.into()))?;
        let options =
            ConnectOptions::new().with_connect_timeout(place.timeout).with_timeout(place.timeout);
        let client = runtime
            .block_on(async {
                let mut client = Client::connect(&place.endpoints, Some(options)).await?;
                client.status().await?;
                Ok(client)
            })
            .map_err(|error: etcd_client::Error| failed(error.into()))?;
        Ok(Self { runtime: Arc::new(runtime), client, server, timeout: place.timeout })
    }

    /// Asks something of the server and waits for the answer.
    pub(super) fn ask<T>(
        &self,
        verb: &'static str,
        what: &str,
        question: impl AsyncFnOnce(Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, DriverError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DriverError::Server {
            server: self.server.clone(),
            verb,
            what: what.to_owned(),
            source,
        };
        let answer =
            async { tokio::time::timeout(self.timeout, question(self.client.clone())).await };
        match self.runtime.block_on(answer) {
            Ok(answer) => answer.map_err(|error| failed(error.into())),
            Err(late) => Err(failed(late.into())),
        }
    }
}
