//! A real VM whose /init is the running program itself.
//!
//! Kernel and modules are those that `make setup` makes. The kernel unpacks one cpio archive after
//! the other, so the initrd here is the standard one followed by this program and its libraries.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A VM, killed when dropped.
pub struct Vm {
    qemu: Child,
    pub folder: TempDir,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            println!("the guest said:\n{}", self.console());
        }
    }
}

fn guest_files() -> PathBuf {
    let root = std::env::var_os("CORACLE_ROOT").unwrap_or_else(|| "/var/lib/coracle".into());
    let files = PathBuf::from(root).join("guest");
    for name in ["vmlinux", "initrd.img"] {
        let file = files.join(name);
        assert!(file.exists(), "{} is missing: run `make setup` first", file.display());
    }
    files
}

impl Vm {
    /// Starts QEMU with both ports; the guest gets `words` on its kernel command line.
    pub fn start(words: &str) -> Vm {
        let folder = tempfile::tempdir().unwrap();
        let files = guest_files();
        let initrd = folder.path().join("initrd.img");
        fs::copy(files.join("initrd.img"), &initrd).unwrap();
        append_program(&initrd);
        // QEMU must not outlive a test that is killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-cpu",
                "max,-erms,-fsrm",
                "-m",
                "512",
                "-smp",
                "1,maxcpus=2",
            ])
            .arg("-kernel")
            .arg(files.join("vmlinux"))
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 {words}"))
            .arg("-serial")
            .arg(format!("file:{}", folder.path().join("console.log").display()));
        for name in ["control", "streams"] {
            let socket = folder.path().join(format!("{name}.sock"));
            let socket = socket.display();
            qemu.arg("-chardev")
                .arg(format!("socket,id={name},path={socket},server=on,wait=off"))
                .args(["-device", &format!("virtio-serial-pci,id=bus-{name}")])
                .arg("-device")
                .arg(format!("virtserialport,bus=bus-{name}.0,chardev={name},name=coracle.{name}"));
        }
        let qemu = qemu.stdin(Stdio::null()).spawn().expect("setpriv must be installed");
        Vm { qemu, folder }
    }

    /// CPU time of QEMU so far, all threads, in seconds.
    #[allow(dead_code)]
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.qemu.id())
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// CPU time of a process so far, all threads, in seconds.
#[allow(dead_code)]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// Appends a cpio archive with this program as /init and every library it has mapped.
fn append_program(initrd: &Path) {
    let mut archive = Cpio(Vec::new());
    for dir in ["lib64", "lib", "lib/x86_64-linux-gnu", "proc", "sys", "dev"] {
        archive.add(dir, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, &fs::read("/proc/self/exe").unwrap());
    for library in mapped_libraries() {
        let name = library.file_name().unwrap().to_str().unwrap();
        let dir = if name.starts_with("ld-") { "lib64" } else { "lib/x86_64-linux-gnu" };
        archive.add(&format!("{dir}/{name}"), 0o100_755, &fs::read(&library).unwrap());
    }
    archive.add("TRAILER!!!", 0, &[]);
    // An archive begins at a multiple of four.
    let before = fs::metadata(initrd).unwrap().len() as usize;
    archive.0.splice(0..0, vec![0; before.next_multiple_of(4) - before]);
    let mut file = fs::OpenOptions::new().append(true).open(initrd).unwrap();
    file.write_all(&archive.0).unwrap();
}

fn mapped_libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| path.to_string_lossy().contains(".so"))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// An archive in the `newc` format.
struct Cpio(Vec<u8>);

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        // Each archive begins at a multiple of four, whatever comes before it.
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
