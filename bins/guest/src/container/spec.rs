//! From the host's OCI specification to the one libcontainer gets.
//!
//! Two kinds of change. What the host may leave out is filled in (a cgroup path of our own). And
//! where libcontainer reads an absent value as leave to do anything, it is spelt out: no
//! capabilities means none, and "new privileges allowed" must be absent rather than false, because
//! the crate would load the system call filter after it has given up the right to do so.

use std::collections::HashSet;
use std::path::PathBuf;

use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxNamespaceType, Process, Spec};

/// Whether `id` can be the name of a folder and of a cgroup: 1 to 128 of letters, digits and
/// `_ + - .`, not `.` or `..`.
pub fn is_valid_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    (1..=128).contains(&id.len()) && id.chars().all(plain) && id != "." && id != ".."
}

/// Fills in and spells out.
pub fn settle(spec: &mut Spec, id: &str) {
    if let Some(process) = spec.process_mut() {
        settle_process(process);
    }
    if let Some(linux) = spec.linux_mut()
        && linux.cgroups_path().is_none()
    {
        linux.set_cgroups_path(Some(PathBuf::from("/containers").join(id)));
    }
}

/// The part of [`settle`] that holds for further processes too.
pub fn settle_process(process: &mut Process) {
    let given = process.capabilities().clone();
    process.set_capabilities(Some(explicit(given)));
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
}

/// Capabilities with every set present: what is not granted is dropped.
fn explicit(given: Option<LinuxCapabilities>) -> LinuxCapabilities {
    let mut capabilities = given.unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_permitted(None)
            .set_inheritable(None)
            .set_ambient(None);
        none
    });
    let or_none = |set: &Option<HashSet<_>>| Some(set.clone().unwrap_or_default());
    let bounding = or_none(capabilities.bounding());
    let effective = or_none(capabilities.effective());
    let permitted = or_none(capabilities.permitted());
    let inheritable = or_none(capabilities.inheritable());
    let ambient = or_none(capabilities.ambient());
    capabilities
        .set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_inheritable(inheritable)
        .set_ambient(ambient);
    capabilities
}

/// The namespaces a further process has to join: all that are the container's own.
pub fn own_namespaces(spec: &Spec) -> Vec<LinuxNamespaceType> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().map(|namespace| namespace.typ()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn absent_capabilities_become_none_at_all() {
        let mut spec = spec(
            r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/","noNewPrivileges":false}}"#,
        );
        settle(&mut spec, "c");
        let process = spec.process().as_ref().unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        for set in [
            capabilities.bounding(),
            capabilities.effective(),
            capabilities.permitted(),
            capabilities.inheritable(),
            capabilities.ambient(),
        ] {
            assert_eq!(set.as_ref().map(HashSet::len), Some(0));
        }
        assert_eq!(process.no_new_privileges(), None);
    }

    #[test]
    fn a_missing_cgroup_path_is_ours_and_a_given_one_stays() {
        let mut without = spec(r#"{"ociVersion":"1.0.2","linux":{}}"#);
        settle(&mut without, "c");
        let path = |spec: &Spec| spec.linux().as_ref().unwrap().cgroups_path().clone().unwrap();
        assert_eq!(path(&without), PathBuf::from("/containers/c"));
        let mut with = spec(r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/pods/p/c"}}"#);
        settle(&mut with, "c");
        assert_eq!(path(&with), PathBuf::from("/pods/p/c"));
    }

    #[test]
    fn ids_are_plain_names() {
        for id in ["c", "golden-container", "a.b+c_D1"] {
            assert!(is_valid_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(129)] {
            assert!(!is_valid_id(id), "{id}");
        }
    }
}
