//! What a container uses, and how much it may.

use coracle_bridge::client::Container;
use coracle_bridge::message::{
    CgroupMetrics, ContainerConstraints, PropertiesQuery, PropertyType, Resource, Verb,
};

use crate::errors::Result;
use crate::lifecycle::UtilityVm;

impl UtilityVm {
    /// The counters of a container's control group.
    ///
    /// # Errors
    /// The VM does not run, or its guest does not answer.
    pub async fn container_metrics(&self, container: &Container) -> Result<CgroupMetrics> {
        let operation = "read the counters of a container";
        self.machine.running_guest(operation)?;
        let query = PropertiesQuery { property_types: vec![PropertyType::STATISTICS] };
        let properties = container.properties(&query).await;
        let properties =
            properties.map_err(|source| self.machine.guest_failed(operation, source))?;
        Ok(properties.metrics.unwrap_or_default())
    }

    /// Gives a container that runs new limits: OCI's `linux.resources`, of which memory, swap, CPU
    /// shares and quota, cpusets and the number of tasks count. What is not there stays as it is.
    ///
    /// # Errors
    /// The VM does not run; the guest cannot set a limit, and then has set those before it.
    pub async fn update_container(
        &self,
        container: &Container,
        limits: ContainerConstraints,
    ) -> Result<()> {
        let operation = "update the limits of a container";
        self.machine.running_guest(operation)?;
        let resource = Resource::ContainerConstraints(limits);
        let updated = container.modify(Verb::Update, &resource).await;
        updated.map_err(|source| self.machine.guest_failed(operation, source))
    }
}
