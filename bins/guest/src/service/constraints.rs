//! New limits for a running container.
//!
//! The host sends OCI resources, whose numbers are those of cgroup v1; the files here are v2's.

use std::fs;

use coracle_bridge::message::incoming::Change;
use coracle_bridge::message::{Resource, Verb};
use coracle_bridge::server::ServiceError;
use libcontainer::oci_spec::runtime::LinuxResources;

use super::containers::Container;

/// Applies the limits in `change` that are set.
pub fn apply(container: &Container, change: Change) -> Result<(), ServiceError> {
    let limits = match (change.resource, change.verb) {
        (Resource::ContainerConstraints(limits), Verb::Update | Verb::Add) => limits,
        (resource, Verb::Add | Verb::Remove | Verb::PreAdd | Verb::Update) => {
            let kind = resource.resource_type();
            let text = format!("the ResourceType \"{kind}\" is not supported for containers");
            return Err(ServiceError::failed(text));
        }
    };
    let Some(linux) = limits.linux else {
        return Err(ServiceError::invalid("there are no limits for Linux"));
    };
    let resources: LinuxResources =
        linux.decode().map_err(|error| ServiceError::invalid(format!("the limits: {error}")))?;
    for (file, value) in settings(&resources) {
        fs::write(container.cgroup.join(file), &value).map_err(|error| {
            let id = container.id();
            ServiceError::failed(format!("setting {file} of container {id} to {value}: {error}"))
        })?;
    }
    Ok(())
}

/// The files to write, in this order.
fn settings(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    let limit = |number: i64| if number < 0 { "max".to_owned() } else { number.to_string() };
    if let Some(memory) = resources.memory() {
        if let Some(number) = memory.limit() {
            files.push(("memory.max", limit(number)));
        }
        if let Some(number) = memory.reservation() {
            files.push(("memory.low", limit(number)));
        }
        // v1 counts memory and swap together.
        if let (Some(both), memory) = (memory.swap(), memory.limit().unwrap_or(0)) {
            files.push((
                "memory.swap.max",
                limit(if both < 0 { both } else { (both - memory).max(0) }),
            ));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares() {
            files.push(("cpu.weight", weight(shares).to_string()));
        }
        if cpu.quota().is_some() || cpu.period().is_some() {
            let quota =
                cpu.quota().filter(|quota| *quota > 0).map_or("max".to_owned(), |q| q.to_string());
            files.push(("cpu.max", format!("{quota} {}", cpu.period().unwrap_or(100_000))));
        }
        if let Some(cpus) = cpu.cpus() {
            files.push(("cpuset.cpus", cpus.clone()));
        }
        if let Some(nodes) = cpu.mems() {
            files.push(("cpuset.mems", nodes.clone()));
        }
    }
    if let Some(pids) = resources.pids() {
        files.push((
            "pids.max",
            if pids.limit() <= 0 { "max".to_owned() } else { pids.limit().to_string() },
        ));
    }
    files
}

/// v1's shares (2 to 262144) as v2's weight (1 to 10000), as runc and systemd convert them.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Vec<(&'static str, String)> {
        settings(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn only_what_is_set_is_written() {
        assert_eq!(files("{}"), []);
        assert_eq!(
            files(r#"{"memory":{"limit":67108864}}"#),
            [("memory.max", "67108864".to_owned())]
        );
    }

    #[test]
    fn swap_is_counted_without_memory_and_no_limit_is_max() {
        assert_eq!(
            files(r#"{"memory":{"limit":100,"swap":150}}"#),
            [("memory.max", "100".to_owned()), ("memory.swap.max", "50".to_owned())]
        );
        assert_eq!(files(r#"{"memory":{"limit":-1}}"#), [("memory.max", "max".to_owned())]);
        assert_eq!(files(r#"{"pids":{"limit":-1}}"#), [("pids.max", "max".to_owned())]);
    }

    #[test]
    fn shares_become_weight_at_both_ends() {
        assert_eq!((weight(0), weight(2), weight(1024), weight(262_144)), (1, 1, 39, 10_000));
    }

    #[test]
    fn a_quota_goes_with_its_period() {
        assert_eq!(files(r#"{"cpu":{"quota":50000}}"#), [("cpu.max", "50000 100000".to_owned())]);
        assert_eq!(
            files(r#"{"cpu":{"quota":-1,"period":20000}}"#),
            [("cpu.max", "max 20000".to_owned())]
        );
    }
}
