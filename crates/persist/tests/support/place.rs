//! File systems of their own, and processes in them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A file system that was mounted for a test. It is unmounted at the end.
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// A tmpfs of so many bytes.
    pub fn tmpfs(bytes: u64) -> Self {
        let mounted = Self::new();
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(mounted.path()));
        mounted
    }

    /// An ext4 in a file of so many MiB, with everything as mke2fs and mount have it by default.
    pub fn ext4(mib: u64) -> Self {
        let mounted = Self::new();
        let image = mounted.image();
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run(Command::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mounted.path()));
        mounted
    }

    /// The file system in a copy of the image of another: what a power cut would leave of it.
    pub fn after_a_power_cut(of: &Mounted) -> Self {
        let mounted = Self::new();
        let image = mounted.image();
        std::fs::copy(of.image(), &image).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mounted.path()));
        mounted
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.path()).stderr(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("cannot unmount {}", self.path().display());
        }
    }
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed, are you root? {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The process for tests to kill.
pub fn writer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_coracle-state-writer"))
}

/// A process that ends with the test, whatever becomes of it.
pub struct Reaped(pub Child);

impl Reaped {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every file and directory beneath a path, relative to it, sorted.
pub fn tree(path: &Path) -> Vec<String> {
    let listed = run(Command::new("find").arg(path).args(["-mindepth", "1", "-printf", "%P\n"]));
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}
