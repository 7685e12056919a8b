//! More or less of something for a sandbox that runs.

use coracle_uvm::container::{ContainerConstraints, Json};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sandbox::Sandbox;

/// The period processor time is counted in, in microseconds.
const PERIOD: u64 = 100_000;

/// What shall be other than it is; what is not there stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Update {
    /// Virtual processors of the VM.
    pub vcpus: Option<u32>,
    /// Memory of the VM in MiB.
    pub memory_mib: Option<u64>,
    /// Limits of its container.
    pub limits: Limits,
}

/// Limits of a container in its VM; what is not there stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "ContainerLimits")]
pub struct Limits {
    /// Processor time, in thousandths of a processor; 0 is no limit.
    pub cpu_millis: Option<u32>,
    /// Its share of the processors against others' in the VM, as cgroup v1 counts: 2 to 262144,
    /// 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Memory in MiB; 0 is no limit.
    pub memory_mib: Option<u64>,
    /// Tasks; 0 is no limit.
    pub pids: Option<u32>,
}

impl Limits {
    fn resources(&self) -> Result<LinuxResources, OciSpecError> {
        // OCI has -1 for no limit.
        let or_none = |number: i64| if number == 0 { -1 } else { number };
        let mut resources = LinuxResourcesBuilder::default();
        if self.cpu_millis.is_some() || self.cpu_shares.is_some() {
            let mut cpu = LinuxCpuBuilder::default();
            if let Some(millis) = self.cpu_millis {
                let quota = i64::from(millis) * i64::try_from(PERIOD / 1000).unwrap_or(100);
                cpu = cpu.quota(or_none(quota)).period(PERIOD);
            }
            if let Some(shares) = self.cpu_shares {
                cpu = cpu.shares(shares);
            }
            resources = resources.cpu(cpu.build()?);
        }
        if let Some(mib) = self.memory_mib {
            let bytes = i64::try_from(mib.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
            resources =
                resources.memory(LinuxMemoryBuilder::default().limit(or_none(bytes)).build()?);
        }
        if let Some(pids) = self.pids {
            let pids = LinuxPidsBuilder::default().limit(or_none(pids.into())).build()?;
            resources = resources.pids(pids);
        }
        resources.build()
    }
}

impl Sandbox {
    /// Makes the sandbox so, in the order of the update's fields.
    ///
    /// # Errors
    /// More than the VM can have; the guest does not follow. What came before stays done.
    pub async fn update(&self, update: &Update) -> Result<(), Error> {
        let failed = |source| self.refused("update", source);
        if let Some(count) = update.vcpus {
            self.vm().update_processors(count).await.map_err(failed)?;
        }
        if let Some(mib) = update.memory_mib {
            self.vm().update_memory(mib).await.map_err(failed)?;
        }
        if update.limits != Limits::default()
            && let Some(container) = self.container()
        {
            let resources =
                update.limits.resources().map_err(|source| self.indescribable(source))?;
            let linux = Json::of(&resources).expect("the maps of OCI resources have texts as keys");
            let limits = ContainerConstraints { linux: Some(linux), windows: None };
            self.vm().update_container(container, limits).await.map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limits: Limits) -> serde_json::Value {
        serde_json::to_value(limits.resources().unwrap()).unwrap()
    }

    #[test]
    fn only_what_is_asked_for_is_in_the_resources() {
        let none = written(Limits::default());
        assert!(none.get("cpu").is_none() && none.get("memory").is_none(), "{none}");
        let all = written(Limits {
            cpu_millis: Some(1500),
            cpu_shares: Some(512),
            memory_mib: Some(64),
            pids: Some(9),
        });
        assert_eq!(all["cpu"]["quota"], 150_000);
        assert_eq!((&all["cpu"]["period"], &all["cpu"]["shares"]), (&100_000.into(), &512.into()));
        assert_eq!(
            (&all["memory"]["limit"], &all["pids"]["limit"]),
            (&67_108_864.into(), &9.into())
        );
    }

    #[test]
    fn zero_takes_a_limit_away() {
        let none =
            Limits { cpu_millis: Some(0), memory_mib: Some(0), pids: Some(0), ..Limits::default() };
        let written = written(none);
        for part in ["/cpu/quota", "/memory/limit", "/pids/limit"] {
            assert_eq!(written.pointer(part), Some(&(-1).into()), "{part}");
        }
    }
}
