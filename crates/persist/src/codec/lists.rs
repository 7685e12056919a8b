//! Whether lists stand only where lists belong.
//!
//! Serde takes a list for a struct, member by member; Go does not, and a file that has one is none
//! that anybody wrote. Telling that from the parsed state would take as long as parsing it, so the
//! brackets are looked for in the bytes. A file in another style than Go's may look wrong here and be
//! right: then it is read the slow way, which knows.

/// Keys whose values are lists.
const KEYS: [&str; 29] = [
    "Addrs",
    "Bridges",
    "ContainerConfigs",
    "DeviceMaps",
    "Devices",
    "Endpoints",
    "Experimental",
    "HotpluggedVCPUs",
    "Mounts",
    "Options",
    "VFIODevs",
    "VirtioFSExtraArgs",
    "allowed_devices",
    "blkio_throttle_read_bps_device",
    "blkio_throttle_read_iops_device",
    "blkio_throttle_write_bps_device",
    "blkio_throttle_write_iops_device",
    "blkio_weight_device",
    "denied_devices",
    "devices",
    "hugepageLimits",
    "hugetlb_limit",
    "net_prio_ifpriomap",
    "priorities",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "weightDevice",
];

/// True when every bracket stands right behind such a key.
pub(super) fn are_in_place(bytes: &[u8]) -> bool {
    let mut brackets = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'[');
    brackets.all(|(at, _)| key_before(&bytes[..at]).is_some_and(is_list_key))
}

/// The key in `…"key":`. Inside a string the quote behind the key would have a backslash before it,
/// which is in no key of ours.
fn key_before(bytes: &[u8]) -> Option<&[u8]> {
    let bytes = bytes.strip_suffix(b"\":")?;
    let start = bytes.iter().rposition(|byte| *byte == b'"')?;
    Some(&bytes[start + 1..])
}

fn is_list_key(key: &[u8]) -> bool {
    KEYS.iter().any(|known| known.as_bytes() == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_behind_the_key_of_a_list_is_in_place() {
        assert!(are_in_place(br#"{"State":"","Devices":[{"VFIODevs":[]}]}"#));
        assert!(are_in_place(br#"{"State":"no brackets"}"#));
    }

    #[test]
    fn a_list_anywhere_else_is_not() {
        for json in [
            "[]",
            r#"{"Config":[]}"#,
            r#"{"Devices":[[]]}"#,
            r#"{"State":"\"Devices\":[","Config":[]}"#,
            r#"{"State":"["}"#,
        ] {
            assert!(!are_in_place(json.as_bytes()), "{json}");
        }
    }
}
