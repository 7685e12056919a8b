//! What is on the host and belongs to no sandbox that lives, found by looking at the host.
//!
//! What is looked for carries its owner's name: processes say in their environment whose part they are,
//! folders, mounts and loop devices lie below the root directory, networks have records. So nothing of
//! another root directory, and nothing that is not ours, is ever found here. A sandbox that is being
//! made, or that a command in the foreground owns, holds its lock, and is left alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use coracle_uvm::process::{PART, Process, ProcessIdentity, all_processes};
use serde::{Deserialize, Serialize};

use crate::client::ClientError;
use crate::ledger;
use crate::network;
use crate::recover;
use crate::root::{CGROUPS, Root};
use crate::run_dir;

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// The kinds of things that are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A sandbox whose monitor died: it is to be recovered.
    Sandbox,
    /// A process that is a part of no sandbox that lives.
    Process,
    /// A mount.
    Mount,
    /// A control group.
    Cgroup,
    /// A loop device.
    Loop,
    /// A lease of a network, with its tap, its rules and its ports.
    Lease,
    /// The directory of a sandbox that is gone.
    Directory,
    /// The log of a sandbox that is gone.
    Log,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Process => "process",
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::Loop => "loop",
            Self::Lease => "lease",
            Self::Directory => "directory",
            Self::Log => "log",
        }
    }
}

/// Something that was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// What kind of thing it is.
    pub kind: Kind,
    /// What it is: a path, a process, a name.
    pub what: String,
    /// The sandbox it was made for.
    pub sandbox: String,
    /// When it was made, RFC 3339, as far as can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why it is here.
    pub why: String,
    #[serde(skip)]
    identity: Option<ProcessIdentity>,
}

/// Something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The states cannot be listed.
    #[error("cannot tell what belongs to whom")]
    States(#[source] Box<crate::Error>),
    /// A thing of the host.
    #[error("cannot remove the {kind} {what}", kind = kind.name())]
    Remove {
        /// Its kind.
        kind: Kind,
        /// What it is.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A sandbox.
    #[error("cannot recover the sandbox {name}")]
    Recover {
        /// Its name.
        name: String,
        /// Why not.
        source: Box<ClientError>,
    },
}

/// Who is there.
struct Sandboxes {
    /// Somebody owns it.
    owned: BTreeSet<String>,
    /// Something is written down of it.
    known: BTreeSet<String>,
}

impl Sandboxes {
    fn look(root: &Root) -> Result<Self, GcError> {
        let known = ledger::names(root).map_err(|error| GcError::States(Box::new(error)))?;
        let owned =
            entries(root.run()).into_iter().filter(|name| run_dir::is_alive(root.run(), name));
        Ok(Self { owned: owned.collect(), known: known.into_iter().collect() })
    }

    /// Whether somebody looks after it, or will be asked to.
    fn is_cared_for(&self, name: &str) -> bool {
        self.owned.contains(name) || self.known.contains(name)
    }
}

/// Looks for everything that was left behind. Blocks.
///
/// # Errors
/// It cannot be told what belongs to whom.
pub fn look(root: &Root) -> Result<Vec<Leak>, GcError> {
    let sandboxes = Sandboxes::look(root)?;
    let mut leaks = abandoned(root, &sandboxes);
    leaks.extend(processes(root, &sandboxes));
    leaks.extend(mounts(root, &sandboxes));
    leaks.extend(cgroups(root, &sandboxes));
    leaks.extend(loops(root, &sandboxes));
    leaks.extend(leases(root, &sandboxes));
    leaks.extend(folders(root.run(), Kind::Directory, |name| {
        // Those with a dot are drafts, and the folder of the networks.
        !name.starts_with('.') && !sandboxes.is_cared_for(name)
    }));
    leaks.extend(folders(&root.data().join("logs"), Kind::Log, |name| {
        !sandboxes.is_cared_for(name)
    }));
    leaks.sort_by(|one, other| (&one.sandbox, one.kind).cmp(&(&other.sandbox, other.kind)));
    Ok(leaks)
}

/// Takes one thing away.
///
/// # Errors
/// It could not be taken away; it can be tried again.
pub async fn clear(root: &Root, leak: &Leak) -> Result<(), GcError> {
    let failed = |source| GcError::Remove { kind: leak.kind, what: leak.what.clone(), source };
    match leak.kind {
        Kind::Sandbox => {
            let name = leak.sandbox.clone();
            let recovered = recover::all(root, std::slice::from_ref(&name)).await;
            let outcome = recovered.and_then(|all| all.into_iter().map(|(_, one)| one).collect());
            let outcome: Result<Vec<_>, _> = outcome;
            outcome.map(drop).map_err(|error| GcError::Recover { name, source: Box::new(error) })
        }
        Kind::Process => {
            let Some(identity) = &leak.identity else { return Ok(()) };
            let Some(process) = Process::find(identity).map_err(failed)? else { return Ok(()) };
            process.kill().map_err(failed)?;
            let gone = tokio::time::timeout(GONE, process.ended_unreaped()).await;
            gone.map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))
        }
        Kind::Mount => {
            let path = PathBuf::from(&leak.what);
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)
                .map_err(|errno| failed(errno.into()))
        }
        Kind::Cgroup => match fs::remove_dir(&leak.what) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            Ok(()) | Err(_) => Ok(()),
        },
        // It goes when the last who uses it does, which is the kernel's to know.
        Kind::Loop => Ok(()),
        Kind::Lease => {
            let of = root.clone();
            let swept = tokio::task::spawn_blocking(move || network::sweep(&of)).await;
            swept.map_err(|error| failed(std::io::Error::other(error)))
        }
        Kind::Directory | Kind::Log => match fs::remove_dir_all(&leak.what) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

/// Sandboxes that are not over and have no monitor.
fn abandoned(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let left = sandboxes.known.difference(&sandboxes.owned);
    let leak = |name: &String| {
        let record = match ledger::read(root, name) {
            Ok(Some(record)) => record,
            // Another runtime's, or one that `state verify` has more to say of.
            Ok(None) | Err(_) => return None,
        };
        (!record.is_at_rest()).then(|| Leak {
            kind: Kind::Sandbox,
            what: name.clone(),
            sandbox: name.clone(),
            since: Some(record.created),
            why: format!("it is {} and has no monitor", record.stage.name()),
            identity: None,
        })
    };
    left.filter_map(leak).collect()
}

fn processes(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let prefix = format!("{PART}={}/", root.run().display());
    let leak = |(identity, environment): (ProcessIdentity, Vec<String>)| {
        let part = environment.iter().find_map(|entry| entry.strip_prefix(&prefix))?;
        let (sandbox, what) = part.split_once('/')?;
        if sandboxes.is_cared_for(sandbox) || identity.pid == std::process::id() {
            return None;
        }
        Some(Leak {
            kind: Kind::Process,
            what: format!("{} ({})", identity.pid, what.trim_start_matches("vm/")),
            sandbox: sandbox.to_owned(),
            since: made(Path::new(&format!("/proc/{}", identity.pid))),
            why: "its sandbox is gone".to_owned(),
            identity: Some(identity),
        })
    };
    all_processes().filter_map(leak).collect()
}

fn mounts(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let leak = |line: &str| {
        let point = line.split(' ').nth(1)?;
        let below = Path::new(point).strip_prefix(root.run()).ok()?;
        let sandbox = below.components().next()?.as_os_str().to_str()?.to_owned();
        (!sandboxes.is_cared_for(&sandbox)).then(|| Leak {
            kind: Kind::Mount,
            what: point.to_owned(),
            sandbox,
            since: None,
            why: "its sandbox is gone".to_owned(),
            identity: None,
        })
    };
    text.lines().filter_map(leak).collect()
}

fn cgroups(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let Ok(parent) = coracle_uvm::cgroup::directory(Path::new(CGROUPS)) else { return Vec::new() };
    let suffix = root.cgroup_suffix();
    let leak = |name: String| {
        let sandbox = name.strip_suffix(&suffix)?;
        let path = parent.join(&name);
        (!sandboxes.is_cared_for(sandbox)).then(|| Leak {
            kind: Kind::Cgroup,
            what: path.display().to_string(),
            sandbox: sandbox.to_owned(),
            since: made(&path),
            why: "its sandbox is gone".to_owned(),
            identity: None,
        })
    };
    entries(&parent).into_iter().filter_map(leak).collect()
}

fn loops(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let leak = |name: String| {
        let file = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        let below = Path::new(file.trim()).strip_prefix(root.run()).ok()?.to_owned();
        let sandbox = below.components().next()?.as_os_str().to_str()?.to_owned();
        (!sandboxes.is_cared_for(&sandbox)).then(|| Leak {
            kind: Kind::Loop,
            what: format!("/dev/{name}"),
            sandbox,
            since: None,
            why: "its sandbox is gone".to_owned(),
            identity: None,
        })
    };
    entries(Path::new("/sys/block")).into_iter().filter_map(leak).collect()
}

fn leases(root: &Root, sandboxes: &Sandboxes) -> Vec<Leak> {
    let networks = network::all(root).unwrap_or_default();
    let of = |network: coracle_net::private::NetworkRecord| {
        let name = network.name.clone();
        let leases = network.leases.into_iter();
        leases.map(move |(sandbox, lease)| (name.clone(), sandbox, lease)).collect::<Vec<_>>()
    };
    let leak = |(network, sandbox, lease): (String, String, network::Lease)| {
        (!sandboxes.is_cared_for(&sandbox)).then(|| Leak {
            kind: Kind::Lease,
            what: format!("{} on network {network}", lease.tap),
            sandbox,
            since: None,
            why: "its sandbox is gone".to_owned(),
            identity: None,
        })
    };
    networks.into_iter().flat_map(of).filter_map(leak).collect()
}

fn folders(parent: &Path, kind: Kind, is_left: impl Fn(&str) -> bool) -> Vec<Leak> {
    let leak = |name: String| {
        let path = parent.join(&name);
        (path.is_dir() && is_left(&name)).then(|| Leak {
            kind,
            what: path.display().to_string(),
            since: made(&path),
            sandbox: name,
            why: "its sandbox is gone".to_owned(),
            identity: None,
        })
    };
    entries(parent).into_iter().filter_map(leak).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// When a path was last changed.
fn made(path: &Path) -> Option<String> {
    let time: SystemTime = fs::metadata(path).ok()?.modified().ok()?;
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(time.strftime("%FT%TZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that does not outlive its test, however that ends.
    struct Reaped(std::process::Child);

    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn what_belongs_to_nobody_is_found_explained_and_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        assert_eq!(look(&root).unwrap(), []);
        fs::create_dir_all(root.run().join("dead/vm")).unwrap();
        fs::create_dir_all(root.logs("dead")).unwrap();
        let mut part = std::process::Command::new("sleep");
        part.arg("1000").env(PART, root.run().join("dead/vm/9p-0"));
        let mut part = Reaped(part.spawn().unwrap());
        // A program has its environment a moment after its parent goes on.
        let environment = format!("/proc/{}/environ", part.0.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read(&environment).unwrap().is_empty() {
            assert!(std::time::Instant::now() < deadline, "it never has an environment");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let owned = run_dir::RunDir::create(root.run(), "owned").unwrap();
        let leaks = look(&root).unwrap();
        let kinds: Vec<Kind> = leaks.iter().map(|leak| leak.kind).collect();
        assert_eq!(kinds, [Kind::Process, Kind::Directory, Kind::Log]);
        assert!(leaks.iter().all(|leak| leak.sandbox == "dead" && leak.since.is_some()));
        assert!(leaks[0].what.ends_with("(9p-0)"), "{}", leaks[0].what);
        for leak in &leaks {
            clear(&root, leak).await.unwrap();
        }
        part.0.wait().unwrap();
        assert_eq!(look(&root).unwrap(), []);
        assert!(owned.path().exists());
        owned.remove().unwrap();
    }
}
