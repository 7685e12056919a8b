//! The cgroup of a sandbox, as runc's library configures one.
//!
//! In Go the resources are a pointer embedded in the cgroup: on the wire their keys stand among
//! those of the cgroup itself, all of them or none. One list below says what they are; reading and
//! writing follow it.

use super::mode::FileMode;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// A list of Go pointers: `None` is `null`, and so may be an element.
pub type List<T> = Option<Vec<Option<T>>>;

/// A cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its name. Left out when empty.
    pub name: String,
    /// Name of the one above, or its slice under systemd. Left out when empty.
    pub parent: String,
    /// Its path, instead of name and parent.
    pub path: String,
    /// Prefix of its scope under systemd.
    pub scope_prefix: String,
    /// Its path in each controller. `None` is written as `null`.
    pub paths: Option<BTreeMap<String, String>>,
    /// Its limits.
    pub resources: Option<Box<CgroupResources>>,
}

/// Defines [`CgroupResources`] and how it lies among the keys of a [`Cgroup`]. The keys of
/// `left_out` are missing when empty.
macro_rules! resources {
    (
        left_out { $($(#[$odoc:meta])* $ofield:ident: $otype:ty, $empty:path;)* }
        written { $($(#[$doc:meta])* $field:ident: $type:ty;)* }
    ) => {
        /// Limits of a [`Cgroup`]. Without one are 0, `""` and `None`.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct CgroupResources {
            $($(#[$odoc])* pub $ofield: $otype,)*
            $($(#[$doc])* pub $field: $type,)*
        }

        const KEYS: &[&str] = &[
            "name", "parent", "path", "scope_prefix", "Paths",
            $(stringify!($ofield),)* $(stringify!($field),)*
        ];

        impl CgroupResources {
            fn write<F: SerializeStruct>(&self, fields: &mut F) -> Result<(), F::Error> {
                $(if !$empty(&self.$ofield) {
                    fields.serialize_field(stringify!($ofield), &self.$ofield)?;
                })*
                $(fields.serialize_field(stringify!($field), &self.$field)?;)*
                Ok(())
            }
        }

        impl Cgroup {
            /// Reads the value of a key of the resources. False when it is none of them.
            fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
                match key {
                    $(stringify!($ofield) => {
                        self.resources.get_or_insert_default().$ofield = map.next_value()?;
                    })*
                    $(stringify!($field) => {
                        self.resources.get_or_insert_default().$field = map.next_value()?;
                    })*
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    };
}

fn none_or_empty<T>(list: &List<T>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

resources! {
    left_out {
        /// Allow all devices but the denied ones; deny all but the allowed ones; or neither.
        allow_all_devices: Option<bool>, Option::is_none;
        /// Devices that are allowed.
        allowed_devices: List<CgroupDevice>, none_or_empty;
        /// Devices that are denied.
        denied_devices: List<CgroupDevice>, none_or_empty;
    }
    written {
        /// Rules for devices.
        devices: List<CgroupDevice>;
        /// Memory, in bytes.
        memory: i64;
        /// Soft limit of memory, in bytes.
        memory_reservation: i64;
        /// Memory and swap together, in bytes; -1 is no limit.
        memory_swap: i64;
        /// Kernel memory, in bytes.
        kernel_memory: i64;
        /// TCP buffers, in bytes.
        kernel_memory_tcp: i64;
        /// Relative weight of processors.
        cpu_shares: u64;
        /// Processor time in a period, in microseconds.
        cpu_quota: i64;
        /// The period, in microseconds.
        cpu_period: u64;
        /// Real-time processor time in a period, in microseconds.
        cpu_rt_quota: i64;
        /// Its period, in microseconds.
        cpu_rt_period: u64;
        /// Which processors, as in `0-3,7`.
        cpuset_cpus: String;
        /// Which memory nodes.
        cpuset_mems: String;
        /// Number of processes.
        pids_limit: i64;
        /// Relative weight of block devices, from 10 to 1000.
        blkio_weight: u16;
        /// The same for the own tasks.
        blkio_leaf_weight: u16;
        /// Weights by device.
        blkio_weight_device: List<WeightDevice>;
        /// Bytes read per second, by device.
        blkio_throttle_read_bps_device: List<ThrottleDevice>;
        /// Bytes written per second, by device.
        blkio_throttle_write_bps_device: List<ThrottleDevice>;
        /// Reads per second, by device.
        blkio_throttle_read_iops_device: List<ThrottleDevice>;
        /// Writes per second, by device.
        blkio_throttle_write_iops_device: List<ThrottleDevice>;
        /// `FROZEN`, `THAWED` or nothing.
        freezer: String;
        /// Huge pages, by size.
        hugetlb_limit: List<HugepageLimit>;
        /// Wait instead of being killed.
        oom_kill_disable: bool;
        /// From 0 to 100.
        memory_swappiness: Option<u64>;
        /// Priorities of traffic, by interface.
        net_prio_ifpriomap: List<InterfacePriority>;
        /// The class of traffic.
        net_cls_classid_u: u32;
        /// Weight of processors in cgroup v2, from 1 to 10000.
        cpu_weight: u64;
        /// `cpu.max` of cgroup v2.
        cpu_max: String;
    }
}

/// A rule for devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupDevice {
    /// The character that says which kind: 99 is `c`, 98 `b`, 97 all.
    #[serde(rename = "type")]
    pub kind: i32,
    /// The node of the device.
    pub path: String,
    /// Major number; -1 is all.
    pub major: i64,
    /// Minor number; -1 is all.
    pub minor: i64,
    /// Letters out of `rwm`.
    pub permissions: String,
    /// Mode of the node.
    pub file_mode: FileMode,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// Allow or deny.
    pub allow: bool,
}

/// The weight of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// From 10 to 1000.
    pub weight: u16,
    /// The same for the own tasks.
    #[serde(rename = "leafWeight")]
    pub leaf_weight: u16,
}

/// The rate of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Bytes or operations per second.
    pub rate: u64,
}

/// A limit of huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HugepageLimit {
    /// Such as `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// The priority of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InterfacePriority {
    /// Its name.
    pub interface: String,
    /// The priority.
    pub priority: i64,
}

impl Serialize for Cgroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Cgroup", KEYS.len())?;
        if !self.name.is_empty() {
            fields.serialize_field("name", &self.name)?;
        }
        if !self.parent.is_empty() {
            fields.serialize_field("parent", &self.parent)?;
        }
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("scope_prefix", &self.scope_prefix)?;
        fields.serialize_field("Paths", &self.paths)?;
        if let Some(resources) = &self.resources {
            resources.write(&mut fields)?;
        }
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Cgroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Cgroup;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a cgroup")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cgroup, A::Error> {
                let mut cgroup = Cgroup::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "name" => cgroup.name = map.next_value()?,
                        "parent" => cgroup.parent = map.next_value()?,
                        "path" => cgroup.path = map.next_value()?,
                        "scope_prefix" => cgroup.scope_prefix = map.next_value()?,
                        "Paths" => cgroup.paths = map.next_value()?,
                        other => {
                            if !cgroup.read(other, &mut map)? {
                                map.next_value::<IgnoredAny>()?;
                                return Err(A::Error::unknown_field(other, KEYS));
                            }
                        }
                    }
                }
                Ok(cgroup)
            }
        }
        deserializer.deserialize_struct("Cgroup", KEYS, Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_resources_none_of_their_keys_is_written() {
        let text = serde_json::to_string(&Cgroup::default()).unwrap();
        assert_eq!(text, r#"{"path":"","scope_prefix":"","Paths":null}"#);
    }

    #[test]
    fn one_key_of_the_resources_brings_all_of_them() {
        let cgroup: Cgroup = serde_json::from_str(r#"{"cpu_shares":7}"#).unwrap();
        let text = serde_json::to_string(&cgroup).unwrap();
        assert!(text.contains(r#""cpu_shares":7"#) && text.contains(r#""cpu_max":"""#), "{text}");
        assert!(!text.contains("allow"), "{text}");
    }

    #[test]
    fn lists_of_pointers_keep_their_nulls() {
        let text = r#"{"path":"","scope_prefix":"","Paths":{},"devices":[null]"#;
        let cgroup: Cgroup = serde_json::from_str(&format!("{text}}}")).unwrap();
        assert!(serde_json::to_string(&cgroup).unwrap().starts_with(text));
    }
}
