//! A root directory of a test's own, with the shared guest files in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::net::Ground;
use crate::{Host, host};

/// A private `--root`; everything a test starts carries its mark.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    /// Part of the name of every sandbox of this place, and so of its processes' command lines.
    mark: String,
    started: AtomicU32,
    before: Host,
    /// Where its commands run; none: where the test does, without a network.
    ground: Option<Ground>,
}

impl Place {
    /// Makes one. Conversions of images are cached below it, not in the user's cache.
    ///
    /// # Panics
    /// When the guest files are not there.
    pub fn new() -> Place {
        Place::make(false)
    }

    /// The same, whose commands run in a network namespace of its own, with the default network.
    ///
    /// # Panics
    /// As [`Place::new`]; not root.
    pub fn networked() -> Place {
        Place::make(true)
    }

    /// The network namespaces of a networked place.
    ///
    /// # Panics
    /// It is none.
    pub fn ground(&self) -> &Ground {
        self.ground.as_ref().expect("the place was made with `networked`")
    }

    fn make(networked: bool) -> Place {
        let guest = guest_dir();
        assert!(
            guest.join("manifest.json").exists(),
            "no guest files in {}: run `make setup` first",
            guest.display()
        );
        let dir = tempfile::Builder::new().prefix("coracle-test").tempdir().unwrap();
        symlink(&guest, dir.path().join("guest")).unwrap();
        // Said once per boot of the host; not in the tests' way.
        let verdicts = dir.path().join("cache/verdicts");
        fs::create_dir_all(&verdicts).unwrap();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(verdicts.join("fallback-told"), boot_id).unwrap();
        let suffix: String = dir.path().to_string_lossy().chars().rev().take(6).collect();
        let mark = format!("place{}", suffix.replace(|c: char| !c.is_ascii_alphanumeric(), "0"));
        let ground = networked.then(|| Ground::new(dir.path()));
        let before = Host::scan(dir.path(), &mark, ground.as_ref());
        Place { dir, mark, started: AtomicU32::new(0), before, ground }
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// What is on the host of this place now.
    pub fn seen(&self) -> Vec<String> {
        Host::scan(self.root(), &self.mark, self.ground.as_ref()).lines()
    }

    /// What is on the host of this place beyond what was there when it was made; the dying get three
    /// seconds.
    pub fn left(&self) -> Vec<String> {
        let ground = self.ground.as_ref();
        Host::scan(self.root(), &self.mark, ground).beyond(&self.before, ground)
    }

    /// What every sandbox of the place has in its name.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The keeper of a sandbox's channel.
    pub fn keeper(&self, sandbox: &str) -> Option<u32> {
        let named = |(_, line): &&(u32, String)| {
            line.contains(" keeper ") && line.contains(&format!("--sandbox {sandbox} "))
        };
        host::processes(self.root(), &self.mark).iter().find(named).map(|(pid, _)| *pid)
    }

    /// The pids of the QEMU processes of this place's sandboxes.
    pub fn qemus(&self) -> Vec<u32> {
        host::processes(self.root(), &self.mark)
            .into_iter()
            .filter(|(_, command_line)| {
                command_line.split(' ').next().is_some_and(|p| p.contains("qemu-system"))
            })
            .map(|(pid, _)| pid)
            .collect()
    }

    /// `coracle ARGS...` in this place; a sandbox it runs is named after the place.
    pub fn coracle<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let is_run = args.first().is_some_and(|verb| verb == "run");
        let is_name = |a: &OsString| a.as_encoded_bytes().starts_with(b"--name");
        if is_run && !args.iter().any(is_name) {
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            args.insert(1, format!("--name={}-{number}", self.mark).into());
        }
        let mut command = match &self.ground {
            Some(ground) => ground.command(&binary()),
            None => Command::new(binary()),
        };
        command.args(args).env("CORACLE_ROOT", self.root()).env_remove("CORACLE_LOG");
        command
            .env("CORACLE_CONFIG", "/dev/null")
            .env_remove("CORACLE_MEMORY")
            .env_remove("CORACLE_CPUS");
        if self.ground.is_none() {
            command.env("CORACLE_NET", "none");
        }
        if std::env::var_os(VSOCK).is_none() {
            command.env(VSOCK, guest_dir().with_file_name("tools/bin/vhost-device-vsock"));
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs `coracle ARGS...` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn output<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Output {
        self.coracle(args).output().expect("the command under test starts")
    }

    /// Fails if anything of this place is left on the host, but for cached images.
    ///
    /// # Panics
    /// When something is left: it is named.
    pub fn assert_nothing_left(&self) {
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Place {
    /// What a failed test left running ends here; what is ours names our folder or our mark.
    fn drop(&mut self) {
        self.end_processes();
        // Its namespaces are mounted in our folder.
        drop(self.ground.take());
        // A process that has just ended, or was not seen while it began, may still have written here: what
        // is removed under its hands is removed again.
        for _ in 0..20 {
            match fs::remove_dir_all(self.root()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

impl Place {
    fn end_processes(&self) {
        for _ in 0..3 {
            let left = host::processes(self.root(), &self.mark);
            if left.is_empty() {
                return;
            }
            // The keepers first: they start what they miss.
            let (keepers, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(_, line)| line.contains(" keeper "));
            for (pid, _) in keepers.into_iter().chain(others) {
                crate::detached::kill(Some(pid));
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Place::new()
    }
}

/// The command under test: `$CORACLE_BIN`, else what `make setup` built.
///
/// # Panics
/// When it was not built.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("CORACLE_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/coracle"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there: run `make build` first", path.display());
    path
}

/// Names the daemon of AF_VSOCK, which is not below a place.
const VSOCK: &str = "CORACLE_VHOST_DEVICE_VSOCK";

/// Where `make setup` put the guest files.
pub fn guest_dir() -> PathBuf {
    let root = std::env::var_os("CORACLE_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| {
        if nix_is_root() {
            return "/var/lib/coracle".into();
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).unwrap_or_else(|| {
            Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".local/share")
        });
        data.join("coracle")
    })
    .join("guest")
}

fn nix_is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

/// The text a command wrote, for messages and comparisons.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Makes a file of so many MiB with an ext4 on it.
///
/// # Panics
/// When it cannot be made.
pub fn ext4(path: &Path, mib: u64) {
    fs::File::create(path).unwrap().set_len(mib << 20).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
}
