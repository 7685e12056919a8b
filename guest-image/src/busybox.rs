//! The built-in root file system for containers that bring none.
//!
//! One static busybox under all its names, and the few files programs look for
//! before anything else: users, groups, host names. The runtime mounts over
//! `/dev`, `/proc` and `/sys`, and over the name files where it knows better.

use std::path::Path;
use std::process::Command;

use crate::tree::{Entry, with_parents};

const DIRECTORIES: [(&str, u16); 14] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 6] = [
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hostname", "coracle\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("etc/resolv.conf", ""),
    (
        "etc/os-release",
        "ID=coracle\nNAME=coracle\nPRETTY_NAME=\"coracle built-in root (busybox)\"\n",
    ),
];

/// The paths busybox wants to be found under, such as `usr/bin/wc`, as it says itself. The list
/// depends on nothing but the binary.
pub(crate) fn applets(busybox: &Path) -> std::io::Result<Vec<String>> {
    let output = Command::new(busybox).arg("--list-full").env_clear().output()?;
    let list = String::from_utf8_lossy(&output.stdout);
    let applets: Vec<String> = list
        .lines()
        .filter(|path| *path != "linuxrc" && *path != "bin/busybox" && is_plain(path))
        .map(str::to_owned)
        .collect();
    if !output.status.success() || applets.is_empty() {
        return Err(std::io::Error::other("it does not list its applets (--list-full)"));
    }
    Ok(applets)
}

/// A relative path of ordinary names.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

/// The root file system.
pub(crate) fn rootfs<'a>(busybox: &'a [u8], applets: &[String]) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> =
        DIRECTORIES.into_iter().map(|(path, mode)| Entry::directory(path, mode)).collect();
    entries.extend(FILES.into_iter().map(|(path, text)| Entry::file(path, 0o644, text.as_bytes())));
    entries.extend(programs(busybox, applets));
    with_parents(entries)
}

/// busybox under all its names.
pub(crate) fn programs<'a>(busybox: &'a [u8], applets: &[String]) -> Vec<Entry<'a>> {
    let links = applets.iter().map(|path| Entry::symlink(path, "/bin/busybox"));
    std::iter::once(Entry::file("bin/busybox", 0o755, busybox)).chain(links).collect()
}
