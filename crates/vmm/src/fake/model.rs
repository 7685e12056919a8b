//! What a monitor knows of its machine: run state, devices, and what they stand on. Pure: a
//! command in, an answer and events out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{effect::Interruption, qemu::device::is_bridge};

/// PCI places behind a bridge.
const BRIDGE_PLACES: usize = 32;

/// A command's refusal in QEMU's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) class: &'static str,
    pub(super) desc: String,
}

fn refuse<T>(desc: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { class: "GenericError", desc: desc.into() })
}

/// QEMU's run states, as many as we get to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum RunState {
    #[default]
    Prelaunch,
    Running,
    Paused,
    Shutdown,
    Panicked,
}

impl RunState {
    fn name(self) -> &'static str {
        match self {
            RunState::Prelaunch => "prelaunch",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Shutdown => "shutdown",
            RunState::Panicked => "guest-panicked",
        }
    }
}

/// An effect to come that is interrupted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interrupt {
    /// Effects until then, itself included; 0 is never reached.
    pub(super) left: u64,
    pub(super) how: Interruption,
}

/// What the server has to do besides answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Go on.
    None,
    /// End well after the answer.
    Quit,
    /// Die at once.
    Die,
}

#[derive(Debug)]
struct FdSet {
    id: u64,
    note: String,
    removed: bool,
}

/// The monitor's knowledge.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) uuid: Uuid,
    pub(super) state: RunState,
    pub(super) chardevs: BTreeSet<String>,
    pub(super) interrupt: Option<Interrupt>,
    devices: BTreeMap<String, Value>,
    leaving: BTreeSet<String>,
    nodes: BTreeMap<String, u64>,
    sets: Vec<FdSet>,
    named: BTreeSet<String>,
    netdevs: BTreeSet<String>,
    objects: BTreeSet<String>,
    pub(super) vcpus: u64,
    pub(super) max_vcpus: u64,
    extra_memory: u64,
    events: Vec<(&'static str, Value)>,
    ring: Vec<u8>,
}

impl Model {
    /// Answers a command. `fd` tells whether a descriptor came with it.
    pub(super) fn execute(
        &mut self,
        name: &str,
        arguments: &Value,
        fd: bool,
    ) -> (Result<Value, Refusal>, Action) {
        let is_effect = !name.starts_with("query-") && !name.starts_with("qom-");
        if is_effect && name != "qmp_capabilities" && name != "ringbuf-read" {
            match self.interrupted() {
                None => {}
                Some(Interruption::Fail) => return (refuse("injected failure"), Action::None),
                Some(Interruption::Die) => return (refuse("dying"), Action::Die),
            }
        }
        let action = if name == "quit" { Action::Quit } else { Action::None };
        (self.answer(name, arguments, fd), action)
    }

    fn interrupted(&mut self) -> Option<Interruption> {
        let interrupt = self.interrupt.as_mut()?;
        interrupt.left = interrupt.left.checked_sub(1)?;
        (interrupt.left == 0).then_some(interrupt.how)
    }

    fn answer(&mut self, name: &str, arguments: &Value, fd: bool) -> Result<Value, Refusal> {
        let text = |key: &str| arguments[key].as_str().unwrap_or_default().to_owned();
        match name {
            "qmp_capabilities" => Ok(json!({})),
            "query-status" => Ok(json!({"status": self.state.name()})),
            "query-uuid" => Ok(json!({"UUID": self.uuid})),
            "cont" => self.resume(),
            "stop" => {
                if self.state == RunState::Running {
                    self.state = RunState::Paused;
                    self.events.push(("STOP", Value::Null));
                }
                Ok(json!({}))
            }
            "quit" => {
                let data = json!({"guest": false, "reason": "host-qmp-quit"});
                self.events.push(("SHUTDOWN", data));
                Ok(json!({}))
            }
            "add-fd" | "getfd" if !fd => refuse("No file descriptor supplied via SCM_RIGHTS"),
            "add-fd" => {
                let id = (0..).find(|id| self.sets.iter().all(|set| set.id != *id)).unwrap_or(0);
                self.sets.push(FdSet { id, note: text("opaque"), removed: false });
                Ok(json!({"fdset-id": id, "fd": 3}))
            }
            "remove-fd" => self.remove_set(&arguments["fdset-id"]),
            "query-fdsets" => {
                let sets = self
                    .sets
                    .iter()
                    .map(|set| json!({"fdset-id": set.id, "fds": [{"fd": 3, "opaque": set.note}]}));
                Ok(sets.collect())
            }
            "getfd" => {
                self.named.insert(text("fdname"));
                Ok(json!({}))
            }
            "closefd" => {
                take(&mut self.named, &text("fdname"), "File descriptor named", "not found")
            }
            "blockdev-add" => self.blockdev_add(arguments),
            "blockdev-del" => self.blockdev_del(&text("node-name")),
            "device_add" => self.device_add(arguments),
            "device_del" => self.device_del(&text("id")),
            "netdev_add" => {
                let (id, fd) = (text("id"), text("fd"));
                if self.netdevs.contains(&id) {
                    return refuse(format!("Duplicate ID '{id}' for netdev"));
                }
                match text("type").as_str() {
                    "vhost-user" if self.chardevs.contains(&text("chardev")) => {}
                    "vhost-user" => {
                        return refuse(format!("chardev \"{}\" not found", text("chardev")));
                    }
                    _ => take(&mut self.named, &fd, "File descriptor named", "has not been found")
                        .map(drop)?,
                }
                self.netdevs.insert(id);
                Ok(json!({}))
            }
            "netdev_del" => take(&mut self.netdevs, &text("id"), "Device", "not found"),
            "chardev-add" => {
                let address = &arguments["backend"]["data"]["addr"]["data"];
                if let Some(path) = address["path"].as_str() {
                    if !path.starts_with("/proc/self/fd/") {
                        return refuse(format!("Failed to connect to '{path}'"));
                    }
                } else {
                    let fd = address["str"].as_str().unwrap_or_default();
                    take(&mut self.named, fd, "File descriptor named", "has not been found")?;
                }
                if !self.chardevs.insert(text("id")) {
                    return refuse(format!("Chardev with id '{}' already exists", text("id")));
                }
                Ok(json!({}))
            }
            "object-add" => {
                if !self.objects.insert(text("id")) {
                    return refuse(format!("attempt to add duplicate property '{}'", text("id")));
                }
                Ok(json!({}))
            }
            "object-del" => take(&mut self.objects, &text("id"), "object", "not found"),
            "qom-set" => {
                self.extra_memory = arguments["value"].as_u64().unwrap_or_default();
                Ok(json!({}))
            }
            "qom-get" if text("property") == "size" => Ok(json!(self.extra_memory)),
            "query-hotpluggable-cpus" => Ok((0..self.max_vcpus)
                .map(|n| {
                    let there =
                        n < self.vcpus || self.devices.contains_key(&format!("vm.cpu{}", n << 32));
                    let mut place = json!({"type": "fake-cpu", "props": {"socket-id": n}});
                    if there {
                        place["qom-path"] = json!(format!("/machine/cpu[{n}]"));
                    }
                    place
                })
                .collect()),
            "qom-get" if text("property") == "memaddr" => {
                let id = text("path");
                let id = id.strip_prefix("/machine/peripheral/").unwrap_or_default();
                let mut pmem = self.devices.iter().filter(|(_, d)| !d["memdev"].is_null());
                match pmem.position(|(known, _)| known == id) {
                    Some(number) => Ok(json!((number as u64 + 1) << 32)),
                    None => refuse(format!("Property '{id}.memaddr' not found")),
                }
            }
            "query-kvm" => Ok(json!({"enabled": false, "present": false})),
            "query-pci" => Ok(self.pci()),
            "chardev-remove" => self.chardev_remove(&text("id")),
            "qom-list" => Ok(self.list(&text("path"))),
            "ringbuf-read" => {
                let bytes = std::mem::take(&mut self.ring);
                Ok(json!(String::from_utf8_lossy(&bytes)))
            }
            unknown => Err(Refusal {
                class: "CommandNotFound",
                desc: format!("The command {unknown} has not been found"),
            }),
        }
    }

    /// Events since the last call.
    pub(super) fn take_events(&mut self) -> Vec<(&'static str, Value)> {
        std::mem::take(&mut self.events)
    }

    /// The guest wrote on its console; only the end is kept.
    pub(super) fn print(&mut self, bytes: &[u8]) {
        const RING: usize = 65_536;
        self.ring.extend_from_slice(bytes);
        let excess = self.ring.len().saturating_sub(RING);
        self.ring.drain(..excess);
    }

    /// The guest ended: well, or in a panic.
    pub(super) fn guest_ended(&mut self, well: bool) {
        if well {
            self.state = RunState::Shutdown;
            self.events.push(("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"})));
        } else {
            self.state = RunState::Panicked;
            self.events.push(("GUEST_PANICKED", json!({"action": "pause"})));
        }
        self.events.push(("STOP", Value::Null));
    }

    pub(super) fn add_cold_set(&mut self, id: u64, note: &str) {
        self.sets.push(FdSet { id, note: note.to_owned(), removed: false });
    }

    pub(super) fn add_object(&mut self, object: &Value) {
        self.objects.insert(object["id"].as_str().unwrap_or_default().to_owned());
    }

    pub(super) fn blockdev_add(&mut self, node: &Value) -> Result<Value, Refusal> {
        let name = node["node-name"].as_str().unwrap_or_default().to_owned();
        if self.nodes.contains_key(&name) {
            return refuse(format!("Duplicate nodes with node-name='{name}'"));
        }
        if let Some(group) = node["throttle-group"].as_str()
            && !self.objects.contains(group)
        {
            return refuse(format!("Throttle group '{group}' does not exist"));
        }
        let mut file = node;
        while file["filename"].is_null() && file["file"].is_object() {
            file = &file["file"];
        }
        let path = file["filename"].as_str().unwrap_or_default();
        let set = path.strip_prefix("/dev/fdset/").and_then(|set| set.parse().ok());
        match set.filter(|set| self.sets.iter().any(|known| known.id == *set)) {
            Some(set) => self.nodes.insert(name, set),
            None => return refuse(format!("Could not open '{path}': No such file or directory")),
        };
        Ok(json!({}))
    }

    fn blockdev_del(&mut self, name: &str) -> Result<Value, Refusal> {
        if self.devices.values().any(|device| device["drive"] == name) {
            return refuse(format!("Node {name} is in use"));
        }
        if self.nodes.remove(name).is_none() {
            return refuse(format!("Failed to find node with node-name='{name}'"));
        }
        Ok(json!({}))
    }

    /// While the VM stands still QEMU only marks a set, and goes on listing it.
    fn remove_set(&mut self, id: &Value) -> Result<Value, Refusal> {
        let used: BTreeSet<u64> = self.nodes.values().copied().collect();
        let Some(set) = self.sets.iter_mut().find(|set| *id == set.id) else {
            return refuse(format!("File descriptor named 'fdset-id:{id}' not found"));
        };
        set.removed = true;
        if self.state == RunState::Running {
            self.sets.retain(|set| !set.removed || used.contains(&set.id));
        }
        Ok(json!({}))
    }

    pub(super) fn device_add(&mut self, device: &Value) -> Result<Value, Refusal> {
        let text = |key: &str| device[key].as_str().unwrap_or_default();
        let (id, driver, bus) = (text("id"), text("driver"), text("bus"));
        if self.devices.contains_key(id) {
            return refuse(format!("Duplicate device ID '{id}'"));
        }
        let owner = bus.strip_suffix(".0").unwrap_or(bus);
        if bus != "pcie.0" && !bus.is_empty() && !self.devices.contains_key(owner) {
            return refuse(format!("Bus '{bus}' not found"));
        }
        let mut siblings = self.devices.values().filter(|other| other["bus"] == bus);
        if driver == "scsi-hd" {
            if let Some(other) = siblings.find(|other| other["lun"] == device["lun"]) {
                let other = other["id"].as_str().unwrap_or_default();
                return refuse(format!("lun already used by '{other}'"));
            }
            let drive = text("drive");
            if !self.nodes.contains_key(drive) {
                let what = format!("Property 'scsi-hd.drive' can't find value '{drive}'");
                return refuse(what);
            }
        } else if is_bridge(bus) && siblings.count() >= BRIDGE_PLACES {
            let what = "all slots in use or reserved";
            return refuse(format!("PCI: no slot/function available for {driver}, {what}"));
        }
        for (key, known) in [("chardev", &self.chardevs), ("netdev", &self.netdevs)] {
            if let Some(backend) = device[key].as_str()
                && !known.contains(backend)
            {
                let what = format!("Property '{driver}.{key}' can't find value '{backend}'");
                return refuse(what);
            }
        }
        self.devices.insert(id.to_owned(), device.clone());
        Ok(json!({}))
    }

    /// A disk or port goes at once; a PCI device when the guest lets it go, for which it must run.
    fn device_del(&mut self, id: &str) -> Result<Value, Refusal> {
        let Some(device) = self.devices.get(id) else {
            let desc = format!("Device '{id}' not found");
            return Err(Refusal { class: "DeviceNotFound", desc });
        };
        let has_pci_name = device["driver"].as_str().is_some_and(|driver| driver.ends_with("-pci"));
        let is_pci = has_pci_name || device["bus"].as_str().is_some_and(is_bridge);
        if !is_pci || self.state == RunState::Running {
            self.delete(id);
        } else if !self.leaving.insert(id.to_owned()) {
            return refuse(format!("Device {id} is already in the process of unplug"));
        }
        Ok(json!({}))
    }

    fn delete(&mut self, id: &str) {
        self.devices.remove(id);
        let path = format!("/machine/peripheral/{id}");
        self.events.push(("DEVICE_DELETED", json!({"path": path, "device": id})));
    }

    fn chardev_remove(&mut self, id: &str) -> Result<Value, Refusal> {
        if self.devices.values().any(|device| device["chardev"] == id) {
            return refuse(format!("Chardev '{id}' is busy"));
        }
        take(&mut self.chardevs, id, "Chardev", "not found")
    }

    fn resume(&mut self) -> Result<Value, Refusal> {
        match self.state {
            RunState::Prelaunch | RunState::Paused => {
                self.state = RunState::Running;
                self.events.push(("RESUME", Value::Null));
                for id in std::mem::take(&mut self.leaving) {
                    self.delete(&id);
                }
            }
            RunState::Running => {}
            RunState::Shutdown | RunState::Panicked => {
                return refuse("Resetting the Virtual Machine is required");
            }
        }
        Ok(json!({}))
    }

    /// Behind each bridge a bus, on it the devices in the order of their names.
    fn pci(&self) -> Value {
        let bridges = self.devices.keys().filter(|id| is_bridge(id)).zip(1..);
        let bus = |(bridge, bus): (&String, u64)| {
            let behind = self.devices.iter().filter(|(_, device)| device["bus"] == **bridge);
            let devices: Value = behind
                .zip(0..)
                .map(|((id, _), slot)| {
                    json!({"bus": bus, "slot": slot, "function": 0, "qdev_id": id})
                })
                .collect();
            json!({"bus": 0, "slot": bus, "function": 0, "qdev_id": bridge,
                "pci_bridge": {"devices": devices}})
        };
        json!([{"bus": 0, "devices": bridges.map(bus).collect::<Value>()}])
    }

    fn list(&self, path: &str) -> Value {
        let child = |name: &String| json!({"name": name, "type": "child<device>"});
        match path {
            "/machine/peripheral" => self.devices.keys().map(child).collect(),
            "/objects" => self.objects.iter().map(child).collect(),
            _ => json!([]),
        }
    }
}

fn take(from: &mut BTreeSet<String>, name: &str, what: &str, why: &str) -> Result<Value, Refusal> {
    if from.remove(name) { Ok(json!({})) } else { refuse(format!("{what} '{name}' {why}")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(model: &mut Model, name: &str, arguments: Value) -> Result<Value, Refusal> {
        model.execute(name, &arguments, true).0
    }

    fn machine() -> Model {
        let mut model = Model::default();
        model.device_add(&json!({"driver": "virtio-scsi-pci", "id": "vm.scsi0"})).unwrap();
        model
    }

    fn node(set: u64) -> Value {
        json!({"driver": "raw", "node-name": "d",
            "file": {"driver": "file", "filename": format!("/dev/fdset/{set}")}})
    }

    fn disk(lun: u64) -> Value {
        json!({"driver": "scsi-hd", "id": "d", "bus": "vm.scsi0.0", "lun": lun, "drive": "d"})
    }

    #[test]
    fn a_set_is_only_marked_while_the_vm_stands_still() {
        let mut model = machine();
        let set = run(&mut model, "add-fd", json!({"opaque": "d"})).unwrap()["fdset-id"].clone();
        run(&mut model, "remove-fd", json!({"fdset-id": set})).unwrap();
        let sets = run(&mut model, "query-fdsets", json!({})).unwrap();
        assert_eq!(sets.as_array().unwrap().len(), 1);
        run(&mut model, "cont", json!({})).unwrap();
        run(&mut model, "remove-fd", json!({"fdset-id": set})).unwrap();
        assert_eq!(run(&mut model, "query-fdsets", json!({})).unwrap(), json!([]));
    }

    #[test]
    fn a_node_in_use_cannot_be_deleted() {
        let mut model = machine();
        run(&mut model, "add-fd", json!({})).unwrap();
        run(&mut model, "blockdev-add", node(0)).unwrap();
        run(&mut model, "device_add", disk(0)).unwrap();
        let refusal = run(&mut model, "blockdev-del", json!({"node-name": "d"})).unwrap_err();
        assert_eq!(refusal.desc, "Node d is in use");
        run(&mut model, "device_del", json!({"id": "d"})).unwrap();
        assert_eq!(model.take_events()[0].0, "DEVICE_DELETED");
        run(&mut model, "blockdev-del", json!({"node-name": "d"})).unwrap();
    }

    #[test]
    fn the_chosen_effect_is_interrupted_and_no_other() {
        let mut model = machine();
        model.interrupt = Some(Interrupt { left: 2, how: Interruption::Fail });
        run(&mut model, "query-status", json!({})).unwrap();
        run(&mut model, "cont", json!({})).unwrap();
        assert_eq!(run(&mut model, "stop", json!({})).unwrap_err().desc, "injected failure");
        assert_eq!(model.state, RunState::Running, "nothing happened");
        run(&mut model, "stop", json!({})).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Verb {
        AddFd,
        RemoveFd(u64),
        Node(u64),
        DeleteNode,
        Plug(u64),
        Unplug,
        Cont,
        Stop,
    }

    fn verb() -> impl Strategy<Value = Verb> {
        prop_oneof![
            Just(Verb::AddFd),
            (0..3_u64).prop_map(Verb::RemoveFd),
            (0..3_u64).prop_map(Verb::Node),
            Just(Verb::DeleteNode),
            (0..3_u64).prop_map(Verb::Plug),
            Just(Verb::Unplug),
            Just(Verb::Cont),
            Just(Verb::Stop),
        ]
    }

    proptest! {
        #[test]
        fn a_disk_always_has_a_node_and_a_node_a_set(verbs in proptest::collection::vec(verb(), 0..60)) {
            let mut model = machine();
            for verb in verbs {
                let (name, arguments) = match verb {
                    Verb::AddFd => ("add-fd", json!({"opaque": "d"})),
                    Verb::RemoveFd(set) => ("remove-fd", json!({"fdset-id": set})),
                    Verb::Node(set) => ("blockdev-add", node(set)),
                    Verb::DeleteNode => ("blockdev-del", json!({"node-name": "d"})),
                    Verb::Plug(lun) => ("device_add", disk(lun)),
                    Verb::Unplug => ("device_del", json!({"id": "d"})),
                    Verb::Cont => ("cont", json!({})),
                    Verb::Stop => ("stop", json!({})),
                };
                // Refusals are part of the game.
                let _ = run(&mut model, name, arguments);
                prop_assert!(!model.devices.contains_key("d") || model.nodes.contains_key("d"));
                for set in model.nodes.values() {
                    prop_assert!(model.sets.iter().any(|known| known.id == *set));
                }
            }
        }
    }
}
