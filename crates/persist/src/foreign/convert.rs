//! Other versions' states made ours, with a list of what was lost on the way.

use super::{Foreign, recognise};
use crate::codec::{self, DecodeError, Document, Node, same_name};
use crate::model::SandboxState;
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// A state of another version in our terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Who wrote it; nothing when its keys are ours.
    pub from: Option<Foreign>,
    /// What could be kept.
    pub state: SandboxState,
    /// What could not.
    pub dropped: Vec<Dropped>,
}

/// A member that has no place in a state of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Where it stood, as in `Config.SandboxBindMounts`.
    pub path: String,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Why a state cannot be converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// A format with nothing in common.
    #[error("a state of {0} has neither devices nor containers in it and cannot be converted")]
    Alien(Foreign),
    /// It cannot even be read.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
}

/// What was called otherwise: in which object, how there, how here.
const RENAMED: &[(&[&str], &str, &str)] = &[
    (&[], "SandboxCgroupPath", "CgroupPath"),
    (&["HypervisorState"], "VirtiofsDaemonPid", "VirtiofsdPid"),
    (&["Network"], "NetworkID", "NetNsPath"),
    (&["Network"], "NetworkCreated", "NetNsCreated"),
    (&["Network", "Endpoints"], "Macvlan", "BridgedMacvlan"),
    (&["Config", "NetworkConfig"], "NetworkID", "NetNSPath"),
    (&["Config", "NetworkConfig"], "NetworkCreated", "NetNsCreated"),
    (&["Config", "NetworkConfig"], "DisableNewNetwork", "DisableNewNetNs"),
    (&["Config", "HypervisorConfig"], "NumVCPUsF", "NumVCPUs"),
];

/// Reads a sandbox's `persist.json` of any Kata whose runtime is written in Go.
///
/// # Errors
/// [`ConvertError`].
pub fn convert(bytes: &[u8]) -> Result<Converted, ConvertError> {
    let (mut file, _) = codec::tree(bytes, Document::Sandbox)?;
    let from = recognise(&file);
    if from == Some(Foreign::RuntimeRs) {
        return Err(ConvertError::Alien(Foreign::RuntimeRs));
    }
    for (path, theirs, ours) in RENAMED {
        rename(&mut file, path, theirs, ours);
    }
    let state: SandboxState = codec::fold(file.clone(), Document::Sandbox)?;
    let kept = codec::encode_sandbox(&state).unwrap_or_default();
    let mut dropped = Vec::new();
    if let Ok((kept, _)) = codec::tree(&kept, Document::Sandbox) {
        missing(&file, &kept, "", &mut dropped);
    }
    Ok(Converted { from, state, dropped })
}

/// Renames a key in every object a path leads to; lists on the way are entered.
fn rename(node: &mut Node<'_>, path: &[&str], theirs: &str, ours: &'static str) {
    match (node, path) {
        (Node::List(nodes), path) => {
            nodes.iter_mut().for_each(|node| rename(node, path, theirs, ours));
        }
        (Node::Object(entries), [key, path @ ..]) => entries
            .iter_mut()
            .filter(|(name, _)| name == key)
            .for_each(|(_, node)| rename(node, path, theirs, ours)),
        (Node::Object(entries), []) => {
            for (key, node) in entries.iter_mut().filter(|(name, _)| name == theirs) {
                *key = Cow::Borrowed(ours);
                // A fraction of a processor takes a whole one.
                if let Node::Float(number) = *node
                    && (0.0..f64::from(u32::MAX)).contains(&number)
                {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    let whole = number.ceil() as u64;
                    *node = Node::Unsigned(whole);
                }
            }
        }
        _ => {}
    }
}

/// Paths of what is said in `file` and not in `kept`.
fn missing(file: &Node<'_>, kept: &Node<'_>, path: &str, dropped: &mut Vec<Dropped>) {
    match (file, kept) {
        (Node::Object(entries), Node::Object(ours)) => {
            for (key, node) in entries {
                let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                match ours.iter().find(|(name, _)| same_name(key, name)) {
                    Some((_, kept)) => missing(node, kept, &path, dropped),
                    None if says_nothing(node) => {}
                    None => dropped.push(Dropped { path }),
                }
            }
        }
        (Node::List(nodes), Node::List(ours)) => {
            for (at, (node, kept)) in nodes.iter().zip(ours).enumerate() {
                missing(node, kept, &format!("{path}[{at}]"), dropped);
            }
        }
        _ => {}
    }
}

/// Whether a value is what a member has that nobody set.
fn says_nothing(node: &Node<'_>) -> bool {
    match node {
        Node::Null | Node::Bool(false) | Node::Unsigned(0) => true,
        Node::Text(text) => text.is_empty(),
        Node::List(nodes) => nodes.is_empty(),
        Node::Object(entries) => entries.iter().all(|(_, node)| says_nothing(node)),
        Node::Bool(true) | Node::Unsigned(_) | Node::Negative(_) | Node::Float(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Tolerance, decode_sandbox};

    #[test]
    fn a_number_of_processors_in_fractions_is_rounded_up() {
        let file = br#"{"PersistVersion":2,"Config":{"HypervisorConfig":{"NumVCPUsF":1.5}}}"#;
        let converted = convert(file).unwrap();
        assert_eq!(converted.from, Some(Foreign::Kata33));
        assert_eq!(converted.state.config.hypervisor_config.num_vcpus, 2);
        assert_eq!(converted.dropped, []);
    }

    #[test]
    fn each_version_is_known_by_its_keys_and_never_read_as_ours() {
        for (file, foreign) in [
            (
                r#"{"Devices":[{"BlockDrive":{"PCIPath":{}}}],"Config":{"ProxyType":""}}"#,
                Foreign::Kata113,
            ),
            (
                r#"{"Config":{"ShimType":"x","HypervisorConfig":{"HypervisorPathList":[]}}}"#,
                Foreign::Kata20,
            ),
            (r#"{"Config":{"HypervisorConfig":{"HypervisorPathList":[]}}}"#, Foreign::Kata21),
            (r#"{"Devices":[{"BlockDrive":{"PCIPath":{}}}],"Config":{}}"#, Foreign::Kata21),
            (r#"{"Config":{"SandboxBindMounts":null}}"#, Foreign::Kata22),
            (r#"{"SandboxCgroupPath":""}"#, Foreign::Kata23),
            (r#"{"Network":{"NetworkID":""}}"#, Foreign::Kata24),
            (r#"{"Config":{"EnableVCPUsPinning":false}}"#, Foreign::Kata31),
            (r#"{"Config":{"HypervisorConfig":{"PCIeSwitchPort":0}}}"#, Foreign::Kata32),
            (r#"{"Config":{"HypervisorConfig":{"NumVCPUsF":1}}}"#, Foreign::Kata33),
            (r#"{"sandbox_type":"virt_container","hypervisor":{}}"#, Foreign::RuntimeRs),
        ] {
            match decode_sandbox(file.as_bytes(), Tolerance::Strict) {
                Err(DecodeError::Foreign { foreign: seen, .. }) => {
                    assert_eq!(seen, foreign, "{file}")
                }
                other => panic!("{file} was read as {other:?}"),
            }
        }
    }

    #[test]
    fn what_has_another_name_is_kept_and_the_rest_is_listed() {
        let file = br#"{"State":"running","SandboxCgroupPath":"/kata","OverheadCgroupPath":"/over",
            "Devices":[{"ID":"a","BlockDrive":{"File":"f","PCIPath":{},"Swap":true}}],
            "HypervisorState":{"VirtiofsDaemonPid":7},
            "Network":{"NetworkID":"/ns","NetworkCreated":true,
                "Endpoints":[{"Type":"macvlan","Macvlan":{"NetPair":{"Name":"br0"}}}]},
            "Config":{"SandboxBindMounts":["/a"],"NetworkConfig":{"NetworkID":"/ns"}}}"#;
        let Converted { from, state, dropped } = convert(file).unwrap();
        assert_eq!(from, Some(Foreign::Kata24));
        assert_eq!(state.cgroup_path, "/kata");
        assert_eq!(state.hypervisor_state.virtiofsd_pid, 7);
        assert_eq!(
            (state.network.net_ns_path.as_str(), state.network.net_ns_created),
            ("/ns", true)
        );
        assert_eq!(state.config.network_config.net_ns_path, "/ns");
        let endpoint = &state.network.endpoints.as_ref().unwrap()[0];
        let macvlan = endpoint.bridged_macvlan.as_ref().unwrap();
        assert_eq!(macvlan.net_pair.tap_interface.name, "br0");
        let dropped: Vec<String> = dropped.iter().map(ToString::to_string).collect();
        assert_eq!(
            dropped,
            ["OverheadCgroupPath", "Devices[0].BlockDrive.Swap", "Config.SandboxBindMounts"]
        );
    }

    #[test]
    fn the_rust_runtimes_file_is_refused_by_name() {
        let error = convert(br#"{"sandbox_type":"virt_container"}"#).unwrap_err();
        assert!(error.to_string().contains("the Rust runtime of Kata 3"), "{error}");
    }

    #[test]
    fn a_file_of_ours_loses_nothing() {
        let ours = codec::encode_sandbox(&SandboxState::default()).unwrap();
        let converted = convert(&ours).unwrap();
        assert_eq!(
            converted,
            Converted { from: None, state: SandboxState::default(), dropped: vec![] }
        );
    }
}
