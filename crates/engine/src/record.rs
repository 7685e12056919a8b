//! A sandbox as it is written down: all a new monitor has to know.
//!
//! It is a member of `coracle.json`, beside Kata's states, which are made from it
//! ([`crate::projection`]). Members are only ever added, each with a default, so that an older
//! record is read by a newer coracle; [`SCHEMA`] changes when that does not do any more.

use std::collections::BTreeMap;

use coracle_image::ImageConfig;
use coracle_uvm::VmRecord;
use coracle_uvm::process::{self, ProcessIdentity};
use serde::{Deserialize, Serialize};

use crate::further::{ContainerStage, FurtherRecord, KILLED};
use crate::health::Health;
use crate::life::Stage;
use crate::monitor::api::{Order, ProcessView, SandboxView};
use crate::network::SavedNetwork;
use crate::plug::SavedPlug;
use crate::spec::Resolved;

/// The form of the record.
pub const SCHEMA: u32 = 1;

/// A sandbox as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The form of this record.
    pub schema: u32,
    /// Its name.
    pub name: String,
    /// What was asked for.
    pub order: Order,
    /// When, RFC 3339.
    pub created: String,
    /// The boot of the host that everything outside of the state belongs to.
    pub boot: String,
    /// Where it is in its life.
    pub stage: Stage,
    /// It is to be there even if its start comes to nothing: it was created, or has run before.
    #[serde(default)]
    pub is_kept: bool,
    /// How long its command gets to stop, in seconds, once somebody asked.
    #[serde(default)]
    pub patience: Option<u64>,
    /// How its command ended, if it has.
    #[serde(default)]
    pub exit_code: Option<u32>,
    /// When, RFC 3339.
    #[serde(default)]
    pub ended: Option<String>,
    /// What is to be said of its end, when it did not end by itself.
    #[serde(default)]
    pub reason: Option<String>,
    /// How often its command was started again.
    #[serde(default)]
    pub restarts: u32,
    /// How well its command is, if that is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The process that owns it, or owned it last.
    #[serde(default)]
    pub monitor: Option<ProcessIdentity>,
    /// What the image says of how to run it.
    #[serde(default)]
    pub image: ImageConfig,
    /// Its container, once there is one.
    #[serde(default)]
    pub container: Option<ContainerRecord>,
    /// The containers beside it, by name.
    #[serde(default)]
    pub containers: BTreeMap<String, FurtherRecord>,
    /// What is plugged in.
    #[serde(default)]
    pub plugs: Vec<SavedPlug>,
    /// The networks it is on.
    #[serde(default)]
    pub networks: Vec<SavedNetwork>,
    /// Its VM, as long as there is something of it.
    #[serde(default)]
    pub vm: Option<VmRecord>,
}

/// A container in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id in the guest.
    pub id: String,
    /// Its bundle in the guest.
    pub bundle: String,
    /// The id of its command's process in the guest; none before the start.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its command.
    pub command: Resolved,
    /// Whether that has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Where its streams begin in the log, which may hold those of former runs: stdout, stderr.
    #[serde(default)]
    pub log_base: [u64; 2],
}

impl SandboxRecord {
    /// One that is about to be made.
    pub(crate) fn creating(name: &str, order: Order) -> Self {
        Self {
            schema: SCHEMA,
            name: name.to_owned(),
            order,
            created: now(),
            boot: process::host_boot_id().unwrap_or_default(),
            stage: Stage::Creating,
            is_kept: false,
            patience: None,
            exit_code: None,
            ended: None,
            reason: None,
            restarts: 0,
            health: None,
            monitor: ProcessIdentity::of_this_process().ok(),
            image: ImageConfig::default(),
            container: None,
            containers: BTreeMap::new(),
            plugs: Vec::new(),
            networks: Vec::new(),
            vm: None,
        }
    }

    /// Whether nothing of it is on the host.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Created | Stage::Exited) && self.vm.is_none()
    }

    /// Whether the process of its VM lives, in this boot of the host.
    pub fn vm_lives(&self) -> bool {
        let Some(vm) = &self.vm else { return false };
        let identity = vm.identity();
        let process = ProcessIdentity { pid: identity.pid, start_time: identity.start_time };
        self.is_of_this_boot() && process.is_alive()
    }

    /// Whether it was written in this boot of the host.
    pub fn is_of_this_boot(&self) -> bool {
        process::host_boot_id().is_ok_and(|boot| boot == self.boot)
    }

    /// The VM is gone, and every container with it.
    pub(crate) fn end_containers(&mut self, reason: &str) {
        // One that was being made: nobody was told of it.
        self.containers.retain(|_, container| container.stage() != ContainerStage::Creating);
        for container in self.containers.values_mut() {
            container.end(KILLED, Some(reason));
            container.is_cleared = true;
        }
    }

    /// As it is shown.
    pub fn view(&self) -> SandboxView {
        let spec = &self.order.sandbox;
        let command = self.container.as_ref().map(|container| container.command.args.clone());
        let size = self.vm.as_ref().map(VmRecord::size);
        SandboxView {
            name: self.name.clone(),
            state: self.stage,
            exit_code: self.exit_code,
            created: self.created.clone(),
            ended: self.ended.clone(),
            reason: self.reason.clone(),
            restarts: self.restarts,
            health: self.order.health.as_ref().filter(|_| self.stage.is_up()).map(|_| {
                // Until the first check there is nothing written down.
                self.health.unwrap_or(Health::Starting)
            }),
            rootfs: spec.rootfs.shown(),
            command: command.unwrap_or_else(|| self.order.command.args.clone()),
            memory_mib: size.map_or(spec.memory_mib, |(_, mib)| mib),
            vcpus: size.map_or(spec.vcpus, |(vcpus, _)| vcpus),
            monitor: self
                .monitor
                .filter(|monitor| self.is_of_this_boot() && monitor.is_alive())
                .map(|monitor| ProcessView { pid: monitor.pid }),
            vm: self
                .vm
                .as_ref()
                .filter(|_| self.vm_lives())
                .map(|vm| ProcessView { pid: vm.identity().pid }),
            networks: self.networks.iter().flat_map(SavedNetwork::shown).collect(),
            plugs: self.plugs.iter().map(|plug| plug.plugged.clone()).collect(),
            containers: self.containers.values().map(FurtherRecord::view).collect(),
        }
    }
}

/// The time, as it is written.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%FT%T%.3fZ").to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use coracle_persist::driver::OwnRecord;

    use super::*;

    /// A sandbox with one thing of each kind, running.
    pub(crate) fn fixture() -> SandboxRecord {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/records/0.1.0/coracle.json");
        let own = OwnRecord::decode(&std::fs::read(path).unwrap()).unwrap();
        serde_json::from_value(own.members["sandbox"].clone()).unwrap()
    }

    /// What every version wrote of a sandbox with one thing of each kind, running.
    #[test]
    fn a_record_of_every_version_there_was_is_understood() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/records");
        let mut versions = 0;
        for version in std::fs::read_dir(folder).unwrap() {
            let path = version.unwrap().path().join("coracle.json");
            let own = OwnRecord::decode(&std::fs::read(&path).unwrap()).unwrap();
            let record: SandboxRecord =
                serde_json::from_value(own.members["sandbox"].clone()).unwrap();
            let view = record.view();
            assert_eq!((view.name.as_str(), view.state), ("fixture", Stage::Running), "{path:?}");
            assert_eq!((view.plugs.len(), view.networks.len()), (5, 1), "{path:?}");
            // Of another boot: nobody of it is mistaken for somebody who lives.
            assert!(view.monitor.is_none() && view.vm.is_none() && !record.vm_lives());
            assert!(record.plugs.iter().all(SavedPlug::is_there), "{path:?}");
            let vm = record.vm.as_ref().unwrap();
            assert_eq!((vm.servers().len(), vm.disks().len()), (2, 1), "{path:?}");
            let (sandbox, containers) = crate::projection::project(&record);
            assert_eq!(sandbox.sandbox_container, "fixture");
            assert_eq!(containers.len(), 1);
            versions += 1;
        }
        assert!(versions > 0);
    }
}
