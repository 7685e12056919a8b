//! Looking at the host; no opinion.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_engine::root::Root;
use coracle_guest_image::{FolderError, GuestFiles};
use rustix::fs::Access;

use super::facts::{CgroupKind, Cgroups, Device, Facts, Guest, Memory, Probed, Qemu, Space};

/// Where distributions put virtiofsd, besides the search path.
const VIRTIOFSD_FOLDERS: [&str; 3] = ["/usr/libexec", "/usr/lib/qemu", "/usr/lib/kvm"];

/// Collects all facts. Nothing is changed on the host.
pub fn probe(root: &Root) -> Facts {
    Facts {
        // Tried anew, whatever was found before.
        kvm: coracle_vmm::accel::examine(None),
        qemu: qemu(),
        guest: guest(root),
        vsock: device("/dev/vhost-vsock"),
        tun: device("/dev/net/tun"),
        cgroups: cgroups(),
        space: space(root.data()),
        memory: memory(),
        virtiofsd: virtiofsd(),
        has_nft: coracle_engine::network::has_nft(),
        is_root: rustix::process::geteuid().is_root(),
    }
}

fn device(path: &str) -> Device {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Usable,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Device::Denied,
        // A node without a driver behind it is as good as none.
        Err(_) => Device::Absent,
    }
}

fn qemu() -> Probed<Qemu> {
    let output = Command::new("qemu-system-x86_64").arg("--version").stdin(Stdio::null()).output();
    match output {
        Ok(output) => Ok(qemu_version(&String::from_utf8_lossy(&output.stdout))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Qemu::Absent),
        Err(error) => Err(format!("qemu-system-x86_64 does not start ({error})")),
    }
}

/// Reads `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
pub(super) fn qemu_version(text: &str) -> Qemu {
    let first = text.lines().next().unwrap_or_default();
    let number = first.split_once("version ").map_or("", |(_, number)| number);
    let mut parts = number.split(['.', ' ']).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Qemu::Version(major, minor),
        _ => Qemu::Strange(first.to_owned()),
    }
}

fn guest(root: &Root) -> Guest {
    match GuestFiles::open(root.guest()) {
        Ok(files) => Guest::Ready {
            release: files.manifest().kernel.release.clone(),
            folder: files.folder().to_owned(),
        },
        Err(FolderError::Absent { folder }) => Guest::Absent { folder },
        Err(error) => Guest::Broken { reason: with_cause(&error) },
    }
}

/// An error and what caused it, in one line.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_cause(cause)),
        None => error.to_string(),
    }
}

fn cgroups() -> Probed<Cgroups> {
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let kind = cgroup_kind(&mounts);
    let folder = match (kind, own.lines().find_map(|line| line.strip_prefix("0::"))) {
        (CgroupKind::Absent, _) => return Ok(Cgroups { kind, writable: false }),
        (CgroupKind::V2, Some(path)) => {
            Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
        }
        (CgroupKind::V2, None) => PathBuf::from("/sys/fs/cgroup"),
        (CgroupKind::V1, _) => PathBuf::from("/sys/fs/cgroup/cpu"),
    };
    Ok(Cgroups { kind, writable: rustix::fs::access(folder, Access::WRITE_OK).is_ok() })
}

/// A hierarchy with the CPU controller decides: beside v1 mounts, v2 has no controllers.
pub(super) fn cgroup_kind(mounts: &str) -> CgroupKind {
    let mounts: Vec<(&str, &str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            Some((words.next()?, words.next()?, words.next()?))
        })
        .collect();
    let has = |kind, option: &str| {
        mounts.iter().any(|(_, found, options)| {
            *found == kind && (option.is_empty() || options.split(',').any(|word| word == option))
        })
    };
    if has("cgroup", "cpu") {
        CgroupKind::V1
    } else if mounts.iter().any(|(at, kind, _)| *at == "/sys/fs/cgroup" && *kind == "cgroup2") {
        CgroupKind::V2
    } else {
        CgroupKind::Absent
    }
}

fn space(folder: &Path) -> Probed<Space> {
    // The folder need not be there yet; its first ancestor that is has the disk it will be on.
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(|errno| format!("{}: {}", existing.display(), std::io::Error::from(errno)))?;
    Ok(Space { folder: folder.to_owned(), free: stat.f_bavail.saturating_mul(stat.f_frsize) })
}

fn memory() -> Probed<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    available_memory(&text).ok_or_else(|| "/proc/meminfo has no MemAvailable".into())
}

/// Reads `MemAvailable:   12345 kB`.
pub(super) fn available_memory(meminfo: &str) -> Option<Memory> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Memory { available: kib >> 10 })
}

fn virtiofsd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(VIRTIOFSD_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join("virtiofsd")).find(|path| path.is_file())
}
