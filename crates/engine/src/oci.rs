//! From what the user asked and what the image says to an OCI runtime specification.
//!
//! Pure: no file is read and nothing is asked. Defaults are those people know from
//! podman and runc: the fourteen capabilities, the masked and read-only paths, the
//! usual mounts and the default device rules. The network namespace is named where hcsshim
//! names it, for the agent to find; every other namespace is the container's own.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder,
    PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, WindowsBuilder,
    WindowsNetworkBuilder,
};

use crate::spec::Resolved;

/// Where programs are looked for when neither image nor user says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The size of a container's /dev/shm, in bytes, unless settings say otherwise.
pub const SHM_BYTES: u64 = 64 << 20;

/// The annotation that carries a user name for the agent to look up in the
/// container's own `/etc/passwd` (OCI has room for numbers only).
pub const USER_ANNOTATION: &str = "coracle.user";

/// A container as the user wants it, image defaults already applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The container's id.
    pub id: String,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value` pairs, later ones win.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `name|uid[:group|gid]`; empty is root.
    pub user: String,
    /// Give it a terminal?
    pub terminal: bool,
    /// Host name inside.
    pub hostname: String,
    /// Absolute path of the root file system in the guest.
    pub rootfs: PathBuf,
    /// May it write to its root file system?
    pub read_only: bool,
    /// The network namespace it is in.
    pub network: String,
    /// The size of its /dev/shm in bytes; none: [`SHM_BYTES`].
    pub shm_bytes: Option<u64>,
    /// What of the VM it sees: path there, path in the container, read-only.
    pub mounts: Vec<(String, String, bool)>,
}

/// Builds the specification.
///
/// # Errors
/// Only if a builder refuses a value, which the fixed values here do not provoke.
pub fn specification(container: &ContainerSpec) -> Result<Spec, OciSpecError> {
    let resolved = Resolved {
        args: container.args.clone(),
        env: container.env.clone(),
        cwd: container.cwd.clone(),
        user: container.user.clone(),
    };
    let process = process(&resolved, container.terminal)?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces()?)
        .resources(LinuxResourcesBuilder::default().devices(device_rules()?).build()?)
        .cgroups_path(Path::new("/containers").join(&container.id))
        .masked_paths(MASKED.map(str::to_owned))
        .readonly_paths(READ_ONLY.map(str::to_owned))
        .build()?;
    let mut annotations = std::collections::HashMap::new();
    if !container.user.is_empty() {
        annotations.insert(USER_ANNOTATION.to_owned(), container.user.clone());
    }
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(container.hostname.clone())
        .root(
            RootBuilder::default()
                .path(container.rootfs.clone())
                .readonly(container.read_only)
                .build()?,
        )
        .process(process)
        .mounts(mounts(container)?)
        .linux(linux)
        .annotations(annotations)
        .windows(
            WindowsBuilder::default()
                .network(
                    WindowsNetworkBuilder::default()
                        .network_namespace(container.network.clone())
                        .build()?,
                )
                .build()?,
        )
        .build()
}

/// A process of a container, its first or another.
///
/// # Errors
/// As [`specification`].
pub fn process(resolved: &Resolved, terminal: bool) -> Result<Process, OciSpecError> {
    ProcessBuilder::default()
        .terminal(terminal)
        .args(resolved.args.clone())
        .env(environment(&resolved.env, terminal))
        .cwd(PathBuf::from(&resolved.cwd))
        .no_new_privileges(false)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(default_capabilities())
                .effective(default_capabilities())
                .permitted(default_capabilities())
                .inheritable([])
                .ambient([])
                .build()?,
        )
        .rlimits([PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(1_048_576_u64)
            .hard(1_048_576_u64)
            .build()?])
        .build()
}

/// The environment with `PATH` (and `TERM` on a terminal) guaranteed, later values
/// of one name replacing earlier ones at the earlier one's place.
pub fn environment(given: &[String], terminal: bool) -> Vec<String> {
    let mut env: Vec<String> = vec![format!("PATH={DEFAULT_PATH}")];
    if terminal {
        env.push("TERM=xterm".to_owned());
    }
    for entry in given {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        let same = |old: &String| old.split_once('=').is_some_and(|(n, _)| n == name);
        match env.iter().position(same) {
            Some(i) => env[i] = entry.clone(),
            None => env.push(entry.clone()),
        }
    }
    env
}

fn default_capabilities() -> std::collections::HashSet<Capability> {
    [
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Mknod,
        Capability::NetBindService,
        Capability::NetRaw,
        Capability::Setfcap,
        Capability::Setgid,
        Capability::Setpcap,
        Capability::Setuid,
        Capability::SysChroot,
        Capability::AuditWrite,
    ]
    .into()
}

fn namespaces() -> Result<Vec<LinuxNamespace>, OciSpecError> {
    [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build())
    .collect()
}

/// Everything denied, then what a shell needs: null, zero, full, tty, random,
/// urandom, console, ptmx and the terminals; nodes may be made but not opened.
fn device_rules() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let character = |major, minor: Option<i64>| {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(major)
            .access("rwm");
        match minor {
            Some(minor) => rule.minor(minor).build(),
            None => rule.build(),
        }
    };
    let make = |typ| LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).access("m").build();
    Ok(vec![
        LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?,
        make(LinuxDeviceType::C)?,
        make(LinuxDeviceType::B)?,
        character(1, Some(3))?,
        character(1, Some(5))?,
        character(1, Some(7))?,
        character(1, Some(8))?,
        character(1, Some(9))?,
        character(5, Some(0))?,
        character(5, Some(1))?,
        character(5, Some(2))?,
        character(136, None)?,
    ])
}

fn mounts(container: &ContainerSpec) -> Result<Vec<Mount>, OciSpecError> {
    let shm = format!("size={}", container.shm_bytes.unwrap_or(SHM_BYTES));
    let table: [(&str, &str, &str, &[&str]); 7] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    table
        .into_iter()
        .map(|(destination, typ, source, options)| {
            MountBuilder::default()
                .destination(destination)
                .typ(typ)
                .source(source)
                .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
                .build()
        })
        .chain(container.mounts.iter().map(|(source, destination, read_only)| {
            let mode = if *read_only { "ro" } else { "rw" };
            MountBuilder::default()
                .destination(destination)
                .typ("bind")
                .source(source)
                .options(["rbind", mode].map(str::to_owned))
                .build()
        }))
        .collect()
}

const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> ContainerSpec {
        ContainerSpec {
            id: "c".into(),
            args: vec!["true".into()],
            env: vec![],
            cwd: "/".into(),
            user: String::new(),
            terminal: false,
            hostname: "c".into(),
            rootfs: "/run/gcs/c/c/rootfs".into(),
            read_only: false,
            network: "c".into(),
            shm_bytes: None,
            mounts: vec![],
        }
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let env = environment(&["A=1".into(), "B=2".into(), "A=3".into()], false);
        assert_eq!(env, [&format!("PATH={DEFAULT_PATH}"), "A=3", "B=2"]);
    }

    #[test]
    fn a_given_path_replaces_the_default_one() {
        assert_eq!(environment(&["PATH=/x".into()], false), ["PATH=/x"]);
    }

    #[test]
    fn device_rules_deny_everything_first() {
        let json = serde_json::to_value(specification(&container()).unwrap()).unwrap();
        let rules = json["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules[0]["allow"], false);
        assert_eq!(rules[0]["access"], "rwm");
        assert!(rules[1..].iter().all(|r| r["access"] == "m" || r["type"] == "c"));
    }

    #[test]
    fn the_user_goes_into_an_annotation_and_root_into_none() {
        let with = ContainerSpec { user: "www-data".into(), ..container() };
        let json = serde_json::to_value(specification(&with).unwrap()).unwrap();
        assert_eq!(json["annotations"][USER_ANNOTATION], "www-data");
        let json = serde_json::to_value(specification(&container()).unwrap()).unwrap();
        assert!(json["annotations"].get(USER_ANNOTATION).is_none());
    }

    #[test]
    fn the_container_is_in_the_network_namespace_of_its_sandbox() {
        let json = serde_json::to_value(specification(&container()).unwrap()).unwrap();
        let types: Vec<_> = json["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(types, ["pid", "mount", "ipc", "uts", "cgroup"]);
        assert_eq!(json["windows"]["network"]["networkNamespace"], "c");
    }
}
