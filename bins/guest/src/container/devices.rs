//! Block devices a container may use beyond those of its specification.
//!
//! The kernel asks a program attached to the container's cgroup; it is replaced whole, by one for the
//! rules of the specification and those added since.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use libcgroups::v2::devices::Devices;
use libcontainer::oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec,
};
use serde::{Deserialize, Serialize};

use super::{bundle, cgroup_of};

/// A block device a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Its numbers.
    pub major: i64,
    /// Its numbers.
    pub minor: i64,
    /// Writes, too.
    pub write: bool,
}

impl Allowed {
    /// Reads the numbers of a disk, `major:minor`.
    pub fn parse(numbers: &str, write: bool) -> Option<Self> {
        let (major, minor) = numbers.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()?, write })
    }

    fn rule(self) -> Result<LinuxDeviceCgroup> {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(self.major)
            .minor(self.minor)
            .access(if self.write { "rw" } else { "r" });
        Ok(rule.build()?)
    }
}

/// Sees to it that the container may use these devices, and no others but those of its
/// specification.
pub fn allow(id: &str, allowed: &[Allowed]) -> Result<()> {
    let spec = Spec::load(bundle(id).join("config.json")).context("reading the specification")?;
    let rules = rules(&spec, allowed)?;
    let cgroup = cgroup_of(id, &spec);
    Devices::apply_devices(&cgroup, &Some(rules))
        .with_context(|| format!("setting the device rules of {}", cgroup.display()))
}

fn rules(spec: &Spec, allowed: &[Allowed]) -> Result<Vec<LinuxDeviceCgroup>> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let mut rules = resources.and_then(|all| all.devices().clone()).unwrap_or_default();
    for device in allowed {
        rules.push(device.rule()?);
    }
    Ok(rules)
}

/// The numbers of a disk by its node in `/dev`.
pub fn numbers(node: &Path, write: bool) -> Option<Allowed> {
    let name = node.file_name()?;
    let text = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")).ok()?;
    Allowed::parse(&text, write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_comes_after_the_specifications_own_rules() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"devices":[
                {"allow":false,"access":"rwm"}]}}}"#,
        )
        .unwrap();
        let disk = Allowed::parse("8:16\n", false).unwrap();
        let rules = rules(&spec, &[disk]).unwrap();
        let written = serde_json::to_value(&rules).unwrap();
        assert_eq!((rules.len(), &written[0]["allow"]), (2, &false.into()));
        let last = serde_json::json!(
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "r"});
        assert_eq!(written[1], last);
    }

    #[test]
    fn only_two_numbers_are_numbers() {
        assert!(Allowed::parse("8", true).is_none() && Allowed::parse("a:b", true).is_none());
    }
}
