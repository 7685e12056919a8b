//! The lab host: a Linux machine under emulation that has what the machine of the tests lacks.
//!
//! It boots the guest's own kernel with an IOMMU, a few PCI devices and control groups of version 2,
//! sees the root file system of this machine read-only, with folders of its own where things are
//! written, and runs a shell script as root. A sandbox in it is an emulated machine in an emulated
//! machine: it boots in a minute, where here it takes two seconds.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use coracle_guest_image::cpio::{Archive, Kind};
use tempfile::TempDir;

use crate::place::{binary, guest_dir, text};

/// Printed with the script's exit status when it has ended.
const END: &str = "LAB EXIT ";

/// What runs first in the lab. The script's output goes to the console and nothing else does.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
while read module; do insmod /$module; done < /modules
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro root /host
# Wherever it is, it is not to be hidden by what is mounted next.
bind() { if [ -d $1 ]; then mkdir -p $2; else : > $2; fi; mount -o bind $1 $2; }
while read name source; do bind /host$source /keep/$name; done < /binds
mount -t proc none /host/proc
mount -t sysfs none /host/sys
mount -t devtmpfs none /host/dev
for folder in tmp run root var/tmp; do mount -t tmpfs none /host/$folder; done
mount -t cgroup2 none /host/sys/fs/cgroup
mkdir /host/run/lab
while read name source; do bind /keep/$name /host/run/lab/$name; done < /binds
ip link set lo up
cp /script /host/tmp/script
stty -onlcr < /dev/console
chroot /host /bin/bash /tmp/script < /dev/null
echo \"LAB EXIT $?\"
poweroff -f
";

/// A lab host to be.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    devices: Vec<String>,
}

impl Lab {
    /// A lab with these PCI devices, each in QEMU's words.
    pub fn with(devices: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("coracle-lab").tempdir().unwrap();
        Self { dir, devices: devices.iter().map(|&device| device.to_owned()).collect() }
    }

    /// Boots the lab, runs the script with `coracle` and `load` (a `modprobe` that knows the
    /// kernel's modules) at hand, and gives what it printed.
    ///
    /// # Panics
    /// When the script fails, or does not end within `limit`.
    pub fn run(&self, script: &str, limit: Duration) -> String {
        let kernel = Kernel::of_guest();
        let script = format!(
            "set -eu\nexport HOME=/root CORACLE_ROOT=/tmp/lab CORACLE_NET=none\nmkdir /tmp/lab\n\
             ln -s /run/lab/guest /tmp/lab/guest\n\
             coracle() {{ /run/lab/coracle \"$@\" 2> /tmp/stderr || {{ e=$?; cat /tmp/stderr; return $e; }}; }}\n\
             load() {{ modprobe -d /run/lab/kernel \"$1\"; }}\n{script}\n"
        );
        let binds = format!(
            "coracle {}\nguest {}\nkernel {}\n",
            binary().canonicalize().unwrap().display(),
            guest_dir().canonicalize().unwrap().display(),
            kernel.folder.display(),
        );
        let initrd = self.dir.path().join("initrd");
        fs::write(&initrd, initial_disk(&kernel, &script, &binds)).unwrap();
        let output = self.boot(&initrd, limit);
        let (printed, errors) = (text(&output.stdout), text(&output.stderr));
        let Some((said, status)) = printed.rsplit_once(END) else {
            panic!("the lab did not come to its end within {limit:?}: {printed}\n{errors}");
        };
        let status = status.split_whitespace().next();
        assert_eq!(status, Some("0"), "the script failed: {said}\n{errors}");
        said.to_owned()
    }

    fn boot(&self, initrd: &Path, limit: Duration) -> Output {
        let console = self.dir.path().join("console");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(guest_dir().join("vmlinux"))
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1 intel_iommu=on"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-device", "intel-iommu"])
            .args([
                "-virtfs",
                "local,path=/,mount_tag=root,security_model=none,readonly=on,\
                    multidevs=remap",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for device in &self.devices {
            qemu.args(["-device", device]);
        }
        let mut child = qemu.spawn().expect("qemu-system-x86_64 is installed: run `make setup`");
        let deadline = Instant::now() + limit;
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        // It may have ended just now, which is as well.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        Output { stdout: fs::read(&console).unwrap_or_default(), ..output }
    }
}

/// The guest's kernel and all its modules.
struct Kernel {
    release: String,
    /// The package, taken apart.
    folder: PathBuf,
}

impl Kernel {
    fn of_guest() -> Self {
        let guest = guest_dir();
        let manifest = fs::read(guest.join("manifest.json")).expect("run `make setup` first");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let release = manifest["kernel"]["release"].as_str().unwrap().to_owned();
        let folder = guest.canonicalize().unwrap().with_file_name("kernels").join(&release);
        assert!(folder.exists(), "{} is missing: run `make setup`", folder.display());
        Self { release, folder }
    }

    /// A module and those it needs, in the order to load them.
    fn modules(&self, name: &str) -> Vec<PathBuf> {
        let output = Command::new("modprobe")
            .arg("-d")
            .arg(&self.folder)
            .args(["-S", &self.release, "--show-depends", name])
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .expect("modprobe is installed: run `make setup`");
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let lines = text(&output.stdout);
        let files = lines.lines().filter_map(|line| line.strip_prefix("insmod "));
        files.map(|file| PathBuf::from(file.trim())).collect()
    }
}

/// Just enough to mount the root file system of this machine.
fn initial_disk(kernel: &Kernel, script: &str, binds: &str) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "host", "keep", "dev"] {
        archive.add(folder, 0o755, Kind::Directory);
    }
    archive.add("dev/console", 0o600, Kind::CharDevice(5, 1));
    archive.add("dev/null", 0o666, Kind::CharDevice(1, 3));
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed: run `make setup`");
    archive.add("bin/busybox", 0o755, Kind::File(&busybox));
    archive.add("init", 0o755, Kind::File(INIT.as_bytes()));
    archive.add("script", 0o644, Kind::File(script.as_bytes()));
    archive.add("binds", 0o644, Kind::File(binds.as_bytes()));
    let mut list = String::new();
    for module in ["virtio_pci", "9pnet_virtio", "9p"] {
        for file in kernel.modules(module) {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            if !list.lines().any(|line| line == name) {
                archive.add(&name, 0o644, Kind::File(&fs::read(&file).unwrap()));
                writeln!(list, "{name}").unwrap();
            }
        }
    }
    archive.add("modules", 0o644, Kind::File(list.as_bytes()));
    archive.finish()
}
