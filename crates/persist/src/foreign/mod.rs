//! Files of other Kata versions, recognised by shape.
//!
//! Every Kata since 1.9 writes version 2, whatever the fields are; so the number tells nothing, and a
//! reader of one version gets silent zeros for all that another has renamed. What tells is which keys
//! are there. Each version below is known by the newest key it brought.

mod convert;

pub use convert::{ConvertError, Converted, Dropped, convert};

use crate::codec::Node;
use std::fmt;

/// Who else may have written a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Kata 1.13-alpha: PCI addresses became paths.
    Kata113,
    /// Kata 2.0: proxy and agent kinds are gone.
    Kata20,
    /// Kata 2.1: so are shims; PCI addresses became paths.
    Kata21,
    /// Kata 2.2.
    Kata22,
    /// Kata 2.3: the sandbox's cgroup has another name.
    Kata23,
    /// Kata 2.4 to 3.0: network and virtiofsd have other names.
    Kata24,
    /// Kata 3.1.
    Kata31,
    /// Kata 3.2.
    Kata32,
    /// Kata 3.3 and later: processors are counted in fractions.
    Kata33,
    /// The runtime of Kata 3 that is written in Rust; another format altogether.
    RuntimeRs,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Foreign::Kata113 => "Kata 1.13",
            Foreign::Kata20 => "Kata 2.0",
            Foreign::Kata21 => "Kata 2.1",
            Foreign::Kata22 => "Kata 2.2",
            Foreign::Kata23 => "Kata 2.3",
            Foreign::Kata24 => "Kata 2.4 to 3.0",
            Foreign::Kata31 => "Kata 3.1",
            Foreign::Kata32 => "Kata 3.2",
            Foreign::Kata33 => "Kata 3.3 or later",
            Foreign::RuntimeRs => "the Rust runtime of Kata 3",
        })
    }
}

/// What gives a version away: a key, and the path of the object it is in.
const TELLTALES: &[(Foreign, &[&str], &str)] = &[
    (Foreign::RuntimeRs, &[], "sandbox_type"),
    (Foreign::RuntimeRs, &["hypervisor"], "hypervisor_type"),
    (Foreign::Kata33, &["Config", "HypervisorConfig"], "NumVCPUsF"),
    (Foreign::Kata32, &["Config", "HypervisorConfig"], "HotPlugVFIO"),
    (Foreign::Kata32, &["Config", "HypervisorConfig"], "ColdPlugVFIO"),
    (Foreign::Kata32, &["Config", "HypervisorConfig"], "PCIeSwitchPort"),
    (Foreign::Kata31, &["Config"], "EnableVCPUsPinning"),
    (Foreign::Kata24, &["Network"], "NetworkID"),
    (Foreign::Kata24, &["Network"], "NetworkCreated"),
    (Foreign::Kata24, &["HypervisorState"], "VirtiofsDaemonPid"),
    (Foreign::Kata23, &[], "SandboxCgroupPath"),
    (Foreign::Kata23, &[], "OverheadCgroupPath"),
    (Foreign::Kata22, &["Config"], "SandboxBindMounts"),
];

/// Who wrote a file, if it was none whose keys we have.
pub(crate) fn recognise(file: &Node<'_>) -> Option<Foreign> {
    let object = |path: &[&str]| path.iter().try_fold(file, |node, key| node.get(key));
    let told = TELLTALES
        .iter()
        .find(|(_, path, key)| object(path).is_some_and(|node| node.get(key).is_some()));
    if let Some((foreign, ..)) = told {
        return Some(*foreign);
    }
    let config = file.get("Config")?;
    // 1.12 itself brought the lists of allowed paths and kept the proxy; 2.0 has them without it.
    let lists =
        config.get("HypervisorConfig").is_some_and(|h| h.get("HypervisorPathList").is_some());
    let proxy = config.get("ProxyType").is_some();
    let shim = config.get("ShimType").is_some();
    match (has_pci_path(file), proxy, shim) {
        (true, true, _) => Some(Foreign::Kata113),
        (_, false, true) if lists => Some(Foreign::Kata20),
        (true, false, _) => Some(Foreign::Kata21),
        (false, false, false) if lists => Some(Foreign::Kata21),
        (false, _, _) => None,
    }
}

fn has_pci_path(file: &Node<'_>) -> bool {
    let Some(Node::List(devices)) = file.get("Devices") else { return false };
    devices.iter().any(|device| {
        let of = |kind| device.get(kind).is_some_and(|node| node.get("PCIPath").is_some());
        of("BlockDrive") || of("VhostUserDev")
    })
}
