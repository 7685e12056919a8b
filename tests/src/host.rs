//! What is on the host: processes, mounts, cgroups, sockets and files that belong to
//! a test's place. Leaks are found by looking, never by asking the program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::net::Ground;

/// A snapshot of what belongs to one place, as lines of text.
#[derive(Debug, Clone, Default)]
pub struct Host {
    seen: BTreeSet<String>,
    root: PathBuf,
    mark: String,
}

impl Host {
    /// Looks for what belongs to `root`, or has `mark` in its command line.
    /// Of a place with networks, what is in its namespace too.
    pub fn scan(root: &Path, mark: &str, ground: Option<&Ground>) -> Host {
        let mut seen = BTreeSet::new();
        for (pid, command_line) in processes(root, mark) {
            seen.insert(format!("process {pid}: {command_line}"));
        }
        lines_naming("/proc/self/mounts", root, "mount", &mut seen);
        lines_naming("/proc/net/unix", root, "socket", &mut seen);
        cgroups(Path::new("/sys/fs/cgroup"), mark, 0, &mut seen);
        files(&root.join("run"), &mut seen);
        seen.extend(ground.into_iter().flat_map(Ground::seen));
        Host { seen, root: root.to_owned(), mark: mark.to_owned() }
    }

    /// Everything that was seen.
    pub fn lines(&self) -> Vec<String> {
        self.seen.iter().cloned().collect()
    }

    /// What is here and was not in `before`. The dying get three seconds to be gone:
    /// a killed process is there until it is reaped.
    pub fn beyond(&self, before: &Host, ground: Option<&Ground>) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut now = self.clone();
        loop {
            let left: Vec<String> = now.seen.difference(&before.seen).cloned().collect();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            sleep(Duration::from_millis(50));
            now = Host::scan(&self.root, &self.mark, ground);
        }
    }
}

/// Pids and command lines of the processes of a place's sandboxes.
pub fn processes_of(place: &crate::Place) -> Vec<(u32, String)> {
    processes(place.root(), place.mark())
}

/// Pids and command lines of the processes that name `root` or `mark`, or hold files below
/// `root` open. QEMU has neither environment nor paths of its owner, but its sandbox's name.
pub(crate) fn processes(root: &Path, mark: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let root_bytes = root.as_os_str().as_encoded_bytes();
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command_line = read("cmdline");
        let open_files = || {
            let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            files.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.starts_with(root))
        };
        let is_ours = has(&command_line, root_bytes)
            || has(&command_line, mark.as_bytes())
            || has(&read("environ"), root_bytes)
            || open_files();
        if pid != std::process::id() && is_ours {
            found.push((pid, String::from_utf8_lossy(&command_line).replace('\0', " ")));
        }
    }
    found
}

fn lines_naming(file: &str, root: &Path, what: &str, seen: &mut BTreeSet<String>) {
    let root = root.to_string_lossy();
    let text = fs::read_to_string(file).unwrap_or_default();
    seen.extend(text.lines().filter(|l| l.contains(&*root)).map(|l| format!("{what}: {l}")));
}

/// Directories in the control group trees that are named after a sandbox of the place. Their
/// common parent is everybody's: other tests make it while this one looks.
fn cgroups(dir: &Path, mark: &str, depth: u32, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains(mark) {
            seen.insert(format!("cgroup: {}", path.display()));
        }
        if depth < 4 {
            cgroups(&path, mark, depth + 1, seen);
        }
    }
}

/// The folder of networks and its lock stay, as a lock must.
fn files(dir: &Path, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.ends_with(".networks/lock")
            || (path.ends_with(".networks") && has_only_a_lock(&path))
        {
            continue;
        }
        seen.insert(format!("file: {}", entry.path().display()));
        files(&entry.path(), seen);
    }
}

fn has_only_a_lock(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).all(|name| name == "lock")
}
