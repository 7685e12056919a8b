//! What a sandbox uses: its VM as the host sees it, its container as the guest counts it.

use coracle_uvm::container::{CgroupMetrics, Container};
use coracle_uvm::schema::VirtualMachineStatistics;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::network::Traffic;
use crate::sandbox::Sandbox;

/// What a sandbox uses now, and has used since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The sandbox.
    pub name: String,
    /// Its VM.
    pub vm: VmUsage,
    /// Its containers; none while the VM is paused, since its guest cannot be asked then.
    pub containers: Vec<ContainerUsage>,
    /// Its network cards.
    #[serde(default)]
    pub networks: Vec<NetworkUsage>,
}

/// What a network card has carried, as the sandbox sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkUsage {
    /// The network.
    pub network: String,
    /// What it has carried.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What a VM costs the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmUsage {
    /// Time on the host's processors, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory of the host in use, in bytes.
    pub memory_bytes: u64,
    /// Memory the guest has, in bytes.
    pub memory_assigned_bytes: u64,
}

/// What a container uses in its VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerUsage {
    /// Its id.
    pub id: String,
    /// Processor time in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes, page cache included.
    pub memory_bytes: u64,
    /// The most it may use, in bytes; none: all there is.
    pub memory_limit_bytes: Option<u64>,
    /// Times its memory was at the limit.
    pub memory_failures: u64,
    /// Tasks.
    pub pids: u64,
    /// The most it may have.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
}

impl VmUsage {
    fn of(statistics: &VirtualMachineStatistics) -> Self {
        const PAGE: u64 = 4096;
        Self {
            cpu_ns: statistics.processor.total_runtime_ns,
            memory_bytes: statistics.memory.working_set_bytes,
            memory_assigned_bytes: statistics.memory.vm_memory.assigned_memory.saturating_mul(PAGE),
        }
    }
}

impl ContainerUsage {
    fn of(id: &str, metrics: &CgroupMetrics) -> Self {
        // What has no limit has the largest number there is.
        let limit = |number: u64| (number < u64::MAX).then_some(number);
        let memory = metrics.memory.as_ref().and_then(|memory| memory.usage.as_ref());
        let pids = metrics.pids.as_ref();
        let moved = |op: &str| {
            let entries = metrics.blkio.iter().flat_map(|io| &io.io_service_bytes_recursive);
            entries.filter(|entry| entry.op == op).map(|entry| entry.value).sum()
        };
        Self {
            id: id.to_owned(),
            cpu_ns: metrics
                .cpu
                .as_ref()
                .and_then(|cpu| cpu.usage.as_ref())
                .map_or(0, |usage| usage.total),
            memory_bytes: memory.map_or(0, |memory| memory.usage),
            memory_limit_bytes: memory.and_then(|memory| limit(memory.limit)),
            memory_failures: memory.map_or(0, |memory| memory.failcnt),
            pids: pids.map_or(0, |pids| pids.current),
            pids_limit: pids.and_then(|pids| limit(pids.limit)),
            read_bytes: moved("Read"),
            written_bytes: moved("Write"),
        }
    }
}

impl Sandbox {
    /// What the VM uses, and the containers if the guest can be asked.
    ///
    /// # Errors
    /// The VM is gone, or its guest does not answer.
    pub(crate) async fn usage(
        &self,
        ask_guest: bool,
        further: &[&Container],
    ) -> Result<Usage, Error> {
        let failed = |source| self.refused("read the use of", source);
        let vm = VmUsage::of(&self.vm().stats().await.map_err(failed)?);
        let mut containers = Vec::new();
        let all = self.container().into_iter().chain(further.iter().copied());
        for container in all.filter(|_| ask_guest) {
            let (id, metrics) =
                (container.id().as_str(), self.vm().container_metrics(container).await);
            match metrics {
                Ok(metrics) => containers.push(ContainerUsage::of(id, &metrics)),
                // It may have ended at this moment.
                Err(error) if id != self.name() => tracing::debug!(id, %error, "no use of it"),
                Err(error) => return Err(failed(error)),
            }
        }
        let networks = self.networks().traffic().await.into_iter();
        let networks =
            networks.map(|(network, traffic)| NetworkUsage { network, traffic }).collect();
        Ok(Usage { name: self.name().to_owned(), vm, containers, networks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_gathered_and_no_limit_is_none() {
        let metrics: CgroupMetrics = serde_json::from_str(
            r#"{"cpu":{"usage":{"total":7}},"pids":{"current":3,"limit":18446744073709551615},
                "memory":{"usage":{"usage":4096,"limit":8192,"failcnt":2}},
                "blkio":{"io_service_bytes_recursive":[
                    {"op":"Read","value":1},{"op":"Write","value":2},{"op":"Read","value":4}]}}"#,
        )
        .unwrap();
        let usage = ContainerUsage::of("c", &metrics);
        let expected = ContainerUsage {
            id: "c".to_owned(),
            cpu_ns: 7,
            memory_bytes: 4096,
            memory_limit_bytes: Some(8192),
            memory_failures: 2,
            pids: 3,
            pids_limit: None,
            read_bytes: 5,
            written_bytes: 2,
        };
        assert_eq!(usage, expected);
        assert_eq!(ContainerUsage::of("c", &CgroupMetrics::default()).cpu_ns, 0);
    }
}
