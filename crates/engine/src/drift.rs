//! Where what is written down of a sandbox and what there is differ.
//!
//! Whoever looks from outside sees the host's half ([`of_host`]); the monitor asks the guest too. What is
//! observed counts: a monitor that takes over forgets what is not there and takes out what nobody wrote
//! down, so a fresh monitor is what mends most of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coracle_uvm::process::ProcessIdentity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::SandboxRecord;
use crate::root::Root;
use crate::run_dir;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drift {
    /// What it is about.
    pub what: String,
    /// How it is.
    pub found: String,
    /// What mends it.
    pub help: String,
}

impl Drift {
    fn new(what: impl Into<String>, found: &str, help: &str) -> Self {
        Self { what: what.into(), found: found.to_owned(), help: help.to_owned() }
    }
}

/// What mends most of it.
const FRESH: &str = "a fresh monitor sees to it: `coracle fsck --repair`";

/// What brings back a share whose server is gone.
const SHARE: &str =
    "remove and add it; one by virtio-fs comes back when the sandbox is stopped and started";

/// What can be seen of the host.
#[derive(Debug, Clone, Default)]
struct Sight {
    has_monitor: bool,
    vm_lives: bool,
    keeper_lives: bool,
    dead_servers: Vec<u32>,
    missing: Vec<PathBuf>,
    missing_taps: Vec<String>,
}

impl Sight {
    fn look(root: &Root, record: &SandboxRecord) -> Self {
        let same_boot = record.is_of_this_boot();
        let mut sight = Self {
            has_monitor: run_dir::is_alive(root.run(), &record.name),
            vm_lives: record.vm_lives(),
            ..Self::default()
        };
        let Some(vm) = &record.vm else { return sight };
        let lives = |process: &ProcessIdentity| same_boot && process.is_alive();
        sight.keeper_lives = vm.keeper().is_some_and(|keeper| lives(&keeper));
        let dead = vm.servers().into_iter().filter(|server| !lives(server));
        sight.dead_servers = dead.map(|server| server.pid).collect();
        let identity = vm.identity();
        let group = identity.cgroup.as_deref().map(coracle_uvm::cgroup::directory);
        let paths = identity.sockets.iter().cloned().chain(group.and_then(Result::ok));
        sight.missing = paths.filter(|path| !path.exists()).collect();
        let shown = record.networks.iter().flat_map(|network| network.shown());
        let taps = shown.map(|attached| attached.tap).filter(|tap| !tap.is_empty());
        sight.missing_taps =
            taps.filter(|tap| !Path::new("/sys/class/net").join(tap).exists()).collect();
        sight
    }
}

/// What differs on the host. Blocks; to be called where the sandbox's networks are.
pub fn of_host(root: &Root, record: &SandboxRecord) -> Vec<Drift> {
    judge(record, &Sight::look(root, record))
}

fn judge(record: &SandboxRecord, sight: &Sight) -> Vec<Drift> {
    let mut drifts = Vec::new();
    if record.is_at_rest() {
        return drifts;
    }
    let recover = format!("`coracle recover {}` starts one", record.name);
    if !sight.has_monitor {
        drifts.push(Drift::new("monitor", "there is none", &recover));
    }
    if !record.stage.is_up() {
        return drifts;
    }
    if !sight.vm_lives {
        drifts.push(Drift::new("vm", "its process is gone", "`coracle recover` writes that down"));
        return drifts;
    }
    if !sight.keeper_lives {
        drifts.push(Drift::new("keeper", "it is gone", FRESH));
    }
    for pid in &sight.dead_servers {
        let what = format!("server of a share, process {pid}");
        let help = SHARE;
        drifts.push(Drift::new(what, "it is gone", help));
    }
    for path in &sight.missing {
        drifts.push(Drift::new(path.display().to_string(), "it is not there", "stop and start it"));
    }
    for tap in &sight.missing_taps {
        let help = "`coracle net rm` and `net add` make another";
        drifts.push(Drift::new(format!("tap {tap}"), "it is not there", help));
    }
    drifts
}

/// The guest's containers and processes, of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) containers: BTreeSet<String>,
    /// By container.
    pub(crate) processes: BTreeSet<(String, u32)>,
}

/// What differs in the guest: what we know of and what it lists.
pub(crate) fn of_guest(known: &Running, listed: &Running) -> Vec<Drift> {
    let mut drifts = Vec::new();
    for id in known.containers.difference(&listed.containers) {
        drifts.push(Drift::new(format!("container {id}"), "the guest has it no more", FRESH));
    }
    for id in listed.containers.difference(&known.containers) {
        drifts.push(Drift::new(format!("container {id}"), "nobody wrote it down", FRESH));
    }
    for (id, pid) in listed.processes.difference(&known.processes) {
        let what = format!("process {pid} in container {id}");
        drifts.push(Drift::new(what, "nobody wrote it down", FRESH));
    }
    drifts
}

/// Something the VM has that no line of ours tells of.
pub(crate) fn stray(what: String) -> Drift {
    Drift::new(what, "the VM has it and nobody wrote it down", FRESH)
}

/// Something plugged in that does not do what it should.
pub(crate) fn unwell(what: String, state: &str) -> Drift {
    Drift::new(what, state, SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::Stage;
    use crate::record::tests::fixture;

    fn well() -> Sight {
        Sight { has_monitor: true, vm_lives: true, keeper_lives: true, ..Sight::default() }
    }

    fn whats(record: &SandboxRecord, sight: &Sight) -> Vec<String> {
        judge(record, sight).into_iter().map(|drift| drift.what).collect()
    }

    #[test]
    fn whatever_is_gone_is_told_and_the_vms_end_is_told_alone() {
        let record = fixture();
        assert_eq!(whats(&record, &well()), [""; 0]);
        let sight = Sight {
            has_monitor: false,
            keeper_lives: false,
            dead_servers: vec![7],
            missing: vec!["/x/qmp.sock".into()],
            missing_taps: vec!["cor1".to_owned()],
            ..well()
        };
        let expected =
            ["monitor", "keeper", "server of a share, process 7", "/x/qmp.sock", "tap cor1"];
        assert_eq!(whats(&record, &sight), expected);
        assert_eq!(whats(&record, &Sight { vm_lives: false, ..well() }), ["vm"]);
        let ended = SandboxRecord { stage: Stage::Exited, vm: None, ..record };
        assert_eq!(whats(&ended, &Sight::default()), [""; 0]);
    }

    #[test]
    fn the_guest_may_have_more_or_less_than_we_know_of() {
        let running = |containers: &[&str], processes: &[u32]| Running {
            containers: containers.iter().map(|id| (*id).to_owned()).collect(),
            processes: processes.iter().map(|pid| ("a".to_owned(), *pid)).collect(),
        };
        let known = running(&["a", "b"], &[1, 2]);
        // A process that has just ended is no difference.
        assert_eq!(of_guest(&known, &running(&["a", "b"], &[1])), []);
        let drifts = of_guest(&known, &running(&["a", "c"], &[1, 3]));
        let whats: Vec<&str> = drifts.iter().map(|drift| drift.what.as_str()).collect();
        assert_eq!(whats, ["container b", "container c", "process 3 in container a"]);
    }
}
