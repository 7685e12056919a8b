//! Every type and member of the persist API is there, under its name, in its order, and keeps what
//! is put into it.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::codec::{
    Tolerance, decode_container, decode_sandbox, encode_container, encode_sandbox,
};
use coracle_persist::model::{
    Addr, Bridge, BridgedMacvlanEndpoint, CURRENT_PERSIST_VERSION, Cgroup, CgroupResources,
    ContainerConfig, ContainerState, CpuDevice, DeviceMap, DeviceState, IpNet, IpVlanEndpoint,
    KataAgentConfig, MacvtapEndpoint, Mount, NetworkEndpoint, NetworkInterface,
    NetworkInterfacePair, PhysicalEndpoint, Present, SandboxState, ShimConfig, TapEndpoint,
    TapInterface, TextKey, TuntapEndpoint, TuntapInterface, VethEndpoint, VfioDev,
    VhostUserEndpoint,
};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use support::{golden, read};

/// Where a type's object stands in a sandbox's document, or in a container's.
const PLACES: &[(&str, &str)] = &[
    ("AgentState", "/AgentState"),
    ("BlockDrive", "/Devices/0/BlockDrive"),
    ("Bridge", "/HypervisorState/Bridges/0"),
    ("BridgedMacvlanEndpoint", "/Network/Endpoints/0/BridgedMacvlan"),
    ("CPUDevice", "/HypervisorState/HotpluggedVCPUs/0"),
    ("ContainerConfig", "/Config/ContainerConfigs/0"),
    ("ContainerState", "container:"),
    ("DeviceMap", "container:/DeviceMaps/0"),
    ("DeviceState", "/Devices/0"),
    ("HypervisorConfig", "/Config/HypervisorConfig"),
    ("HypervisorState", "/HypervisorState"),
    ("IPVlanEndpoint", "/Network/Endpoints/0/IPVlan"),
    ("KataAgentConfig", "/Config/KataAgentConfig"),
    ("MacvtapEndpoint", "/Network/Endpoints/0/Macvtap"),
    ("Mount", "container:/Mounts/0"),
    ("NetworkConfig", "/Config/NetworkConfig"),
    ("NetworkEndpoint", "/Network/Endpoints/0"),
    ("NetworkInfo", "/Network"),
    ("NetworkInterface", "/Network/Endpoints/0/Veth/NetPair/VirtIface"),
    ("NetworkInterfacePair", "/Network/Endpoints/0/Veth/NetPair"),
    ("PhysicalEndpoint", "/Network/Endpoints/0/Physical"),
    ("Process", "container:/Process"),
    ("ProxyConfig", "/Config/ProxyConfig"),
    ("RootfsState", "container:/Rootfs"),
    ("SandboxConfig", "/Config"),
    ("SandboxState", ""),
    ("ShimConfig", "/Config/KataShimConfig"),
    ("TapEndpoint", "/Network/Endpoints/0/Tap"),
    ("TapInterface", "/Network/Endpoints/0/Tap/TapInterface"),
    ("TuntapEndpoint", "/Network/Endpoints/0/Tuntap"),
    ("TuntapInterface", "/Network/Endpoints/0/Tuntap/TuntapInterface"),
    ("VFIODev", "/Devices/0/VFIODevs/0"),
    ("VethEndpoint", "/Network/Endpoints/0/Veth"),
    ("VhostUserDeviceAttrs", "/Devices/0/VhostUserDev"),
    ("VhostUserEndpoint", "/Network/Endpoints/0/VhostUser"),
];

/// Every type with its members, as the API's documentation lists them.
fn seed() -> BTreeMap<String, Vec<String>> {
    let text = String::from_utf8(read(golden().join("members.txt"))).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, members) = line.split_once(": ").unwrap();
            (name.to_owned(), members.split(' ').map(str::to_owned).collect())
        })
        .collect()
}

/// A sandbox with one of everything.
fn sandbox() -> SandboxState {
    let iface = NetworkInterface {
        addrs: Some(vec![Addr {
            net: Some(IpNet::default()),
            peer: Some(IpNet::default()),
            ..Addr::default()
        }]),
        ..NetworkInterface::default()
    };
    let tap = TapInterface { tap_iface: iface.clone(), ..TapInterface::default() };
    let net_pair = NetworkInterfacePair {
        tap_interface: tap.clone(),
        virt_iface: iface.clone(),
        ..NetworkInterfacePair::default()
    };
    let endpoint = NetworkEndpoint {
        physical: Some(PhysicalEndpoint::default()),
        veth: Some(VethEndpoint { net_pair: net_pair.clone() }),
        vhost_user: Some(VhostUserEndpoint::default()),
        bridged_macvlan: Some(BridgedMacvlanEndpoint { net_pair: net_pair.clone() }),
        macvtap: Some(MacvtapEndpoint::default()),
        tap: Some(TapEndpoint { tap_interface: tap }),
        ipvlan: Some(IpVlanEndpoint { net_pair }),
        tuntap: Some(TuntapEndpoint {
            tuntap_interface: TuntapInterface { tap_iface: iface, ..TuntapInterface::default() },
        }),
        ..NetworkEndpoint::default()
    };
    let texts = || Some(BTreeMap::from([("key".to_owned(), String::new())]));
    let list = || Some(vec![String::new()]);
    let device = DeviceState {
        driver_options: texts(),
        block_drive: Some(Default::default()),
        vfio_devs: vec![Some(VfioDev::default())],
        vhost_user_dev: Some(Default::default()),
        ..DeviceState::default()
    };
    let mut state = SandboxState {
        cgroup_paths: texts(),
        devices: Some(vec![device]),
        ..SandboxState::default()
    };
    state.hypervisor_state.block_index_map = Some([(TextKey(3), Present {})].into());
    let address = [(TextKey(1), String::new())].into();
    state.hypervisor_state.bridges =
        Some(vec![Bridge { device_addr: Some(address), ..Bridge::default() }]);
    state.hypervisor_state.hotplugged_vcpus = Some(vec![CpuDevice::default()]);
    state.network.endpoints = Some(vec![endpoint]);
    let config = &mut state.config;
    config.kata_agent_config = Some(KataAgentConfig::default());
    config.kata_shim_config = Some(ShimConfig::default());
    config.experimental = list();
    config.container_configs =
        Some(vec![ContainerConfig { annotations: texts(), ..ContainerConfig::default() }]);
    config.cgroups =
        Some(Cgroup { resources: Some(Box::new(CgroupResources::default())), ..Cgroup::default() });
    config.hypervisor_config.virtio_fs_extra_args = list();
    state
}

fn container() -> ContainerState {
    ContainerState {
        device_maps: Some(vec![DeviceMap::default()]),
        mounts: Some(vec![Mount { options: Some(vec![String::new()]), ..Mount::default() }]),
        ..ContainerState::default()
    }
}

/// Puts a value of its own into every place; what is null or empty stays so.
fn fill(value: &mut Value, key: &str, next: &mut u32) {
    *next += 1;
    match value {
        Value::Null => {}
        Value::Bool(bool) => *bool = true,
        Value::Number(number) => *number = (*next).into(),
        Value::String(text) => {
            *text = match key {
                "IP" | "Broadcast" => format!("10.0.{}.{}", *next / 256, *next % 256),
                "Mask" => "////AA==".to_owned(),
                "StartTime" => "2020-10-22T01:02:03.000000004Z".to_owned(),
                _ => format!("text {next}"),
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| fill(value, key, next)),
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| fill(value, key, next)),
    }
}

/// JSON whose objects keep their order.
#[derive(Debug)]
enum Ordered {
    Leaf,
    List(Vec<Ordered>),
    Object(Vec<(String, Ordered)>),
}

impl Ordered {
    fn keys(&self, path: &str) -> Vec<String> {
        let steps = path.split('/').filter(|step| !step.is_empty());
        let found = steps.fold(self, |here, step| match here {
            Ordered::Leaf => panic!("{path}: no {step}"),
            Ordered::List(list) => &list[step.parse::<usize>().unwrap()],
            Ordered::Object(keys) => {
                let found = keys.iter().find(|(key, _)| key == step);
                &found.unwrap_or_else(|| panic!("{path}: no {step}")).1
            }
        });
        match found {
            Ordered::Object(keys) => keys.iter().map(|(key, _)| key.clone()).collect(),
            other => panic!("{path} is {other:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Ordered, E> {
                Ok(Ordered::Leaf)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Ordered, E> {
                Ok(Ordered::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Ordered, E> {
                Ok(Ordered::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Ordered, E> {
                Ok(Ordered::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Ordered, E> {
                Ok(Ordered::Leaf)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ordered, A::Error> {
                let mut list = Vec::new();
                while let Some(next) = seq.next_element()? {
                    list.push(next);
                }
                Ok(Ordered::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut keys = Vec::new();
                while let Some(next) = map.next_entry()? {
                    keys.push(next);
                }
                Ok(Ordered::Object(keys))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[test]
fn every_type_and_member_of_the_seed_is_there_in_its_place() {
    let seed = seed();
    let members: usize = seed.values().map(Vec::len).sum();
    assert_eq!((seed.len(), members), (36, 213));
    let sandbox: Ordered = serde_json::from_slice(&encode_sandbox(&sandbox()).unwrap()).unwrap();
    let container: Ordered =
        serde_json::from_slice(&encode_container(&container()).unwrap()).unwrap();
    let mut seen = 0;
    for (name, place) in PLACES {
        let keys = match place.strip_prefix("container:") {
            Some(place) => container.keys(place),
            None => sandbox.keys(place),
        };
        let expected: Vec<String> = seed[*name]
            .iter()
            .flat_map(|member| match (*name, member.as_str()) {
                // Go embeds it, so its members stand among the pair's.
                ("NetworkInterfacePair", "TapInterface") => seed["TapInterface"].clone(),
                // It has a tag.
                ("SandboxConfig", "Cgroups") => vec!["cgroups".to_owned()],
                _ => vec![member.clone()],
            })
            .collect();
        assert_eq!(keys, expected, "{name}");
        seen += 1;
    }
    // The one that is left has methods and no place in a file.
    assert_eq!(seen + 1, seed.len());
    assert_eq!(seed["PersistDriver"].len(), 8);
}

#[test]
fn every_member_keeps_what_is_put_into_it() {
    let mut before: Value = serde_json::from_slice(&encode_sandbox(&sandbox()).unwrap()).unwrap();
    let mut next = 0;
    fill(&mut before, "", &mut next);
    assert!(next > 250, "{next} values");
    let bytes = serde_json::to_vec(&before).unwrap();
    let state = decode_sandbox(&bytes, Tolerance::Strict).unwrap();
    let after: Value = serde_json::from_slice(&encode_sandbox(&state).unwrap()).unwrap();
    assert_eq!(after, before);

    let mut before: Value =
        serde_json::from_slice(&encode_container(&container()).unwrap()).unwrap();
    fill(&mut before, "", &mut next);
    let bytes = serde_json::to_vec(&before).unwrap();
    let state = decode_container(&bytes, Tolerance::Strict).unwrap();
    let after: Value = serde_json::from_slice(&encode_container(&state).unwrap()).unwrap();
    assert_eq!(after, before);
}

#[test]
fn the_default_of_every_type_is_gos_zero() {
    let empty = decode_sandbox(b"{}", Tolerance::Strict).unwrap();
    assert_eq!(empty, SandboxState::default());
    assert_eq!(decode_container(b"{}", Tolerance::Strict).unwrap(), ContainerState::default());
    let value: Value = serde_json::from_slice(&encode_sandbox(&empty).unwrap()).unwrap();
    fn zero(value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.values().all(zero),
            Value::Bool(true) | Value::Array(_) => false,
        }
    }
    assert!(zero(&value), "{value}");
}

#[test]
fn new_sandboxes_are_of_version_two() {
    assert_eq!(CURRENT_PERSIST_VERSION, 2);
}
