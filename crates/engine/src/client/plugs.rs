//! What is plugged into a sandbox, and the networks it is on, as others ask for it.

use super::{Client, ClientError};
use crate::monitor::api::{
    AttachRequest, Attached, Kind, LeaveRequest, PlugSpec, Plugged, RemoveRequest,
};

impl Client {
    /// What is plugged in.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn plugs(&self) -> Result<Vec<Plugged>, ClientError> {
        self.get("/v1/plugs").await
    }

    /// Plugs something in.
    ///
    /// # Errors
    /// It cannot be plugged in; the monitor cannot be asked.
    pub async fn plug(&self, spec: &PlugSpec) -> Result<Plugged, ClientError> {
        self.post("/v1/plugs", spec).await
    }

    /// Takes something out.
    ///
    /// # Errors
    /// It is not there or is not let go of; the monitor cannot be asked.
    pub async fn unplug(&self, kind: Kind, key: &str) -> Result<Plugged, ClientError> {
        self.post("/v1/plugs/remove", &RemoveRequest { kind, key: key.to_owned() }).await
    }

    /// The networks it is on.
    ///
    /// # Errors
    /// The monitor cannot be asked.
    pub async fn networks(&self) -> Result<Vec<Attached>, ClientError> {
        self.get("/v1/networks").await
    }

    /// Puts it on one more network.
    ///
    /// # Errors
    /// It cannot be; the monitor cannot be asked.
    pub async fn attach_network(
        &self,
        request: &AttachRequest,
    ) -> Result<Vec<Attached>, ClientError> {
        self.post("/v1/networks", request).await
    }

    /// Takes it off a network.
    ///
    /// # Errors
    /// It is not on it or is not let go of; the monitor cannot be asked.
    pub async fn detach_network(&self, network: &str) -> Result<(), ClientError> {
        let asked = LeaveRequest { network: network.to_owned() };
        self.post("/v1/networks/remove", &asked).await
    }
}
