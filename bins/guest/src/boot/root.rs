//! The switch from the initrd to the root the VM keeps.
//!
//! The initrd is the one mount `pivot_root` cannot leave, and containers are entered by
//! `pivot_root`. So the agent covers it with another mount and moves in: a fresh tmpfs, or the
//! disk the host named. Nothing is copied. The directories the initrd brought are bound into the
//! tmpfs, and the agent's own file needs no name at all, because helpers are started from the open
//! descriptor ([`crate::process::program`]); as PID 1 runs from that same file, the kernel refuses
//! to open it for writing as long as the VM lives, container or not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_bridge::boot::{RootDevice, RootSource};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::storage::mount::{Mount, Mounter};
use crate::storage::{disk, pmem};

use super::mounts::{EARLY, create_mount_point};

const NEW_ROOT: &str = "/.root";

/// How long the root device may take to appear.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(30);

/// Moves into the root that `device` holds, or into a tmpfs with what the initrd brought.
pub fn switch(device: Option<&RootDevice>, mounter: &Mounter) -> Result<()> {
    create_mount_point(Path::new(NEW_ROOT))?;
    match device {
        None => prepare_memory_root()?,
        Some(device) => mount_disk_root(device, mounter)?,
    }
    for early in EARLY {
        let target = beneath_new_root(Path::new(early));
        create_mount_point(&target)?;
        mount(Some(early), &target, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("moving {early} to the new root"))?;
    }
    chdir(NEW_ROOT).context("entering the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("moving the new root over the old")?;
    chroot(".").context("making the new root the root")?;
    chdir("/").context("entering the root")
}

fn prepare_memory_root() -> Result<()> {
    mount(Some("root"), NEW_ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .context("mounting a tmpfs for the root")?;
    for entry in fs::read_dir("/").context("listing the initrd")? {
        let path = entry.context("listing the initrd")?.path();
        let covered = [NEW_ROOT, "/run", "/tmp"];
        if EARLY.iter().chain(&covered).any(|known| path == Path::new(known)) {
            continue;
        }
        let target = beneath_new_root(&path);
        if path.is_symlink() {
            let link = fs::read_link(&path).context("reading a link of the initrd")?;
            std::os::unix::fs::symlink(link, &target).context("copying a link of the initrd")?;
        } else if path.is_dir() {
            create_mount_point(&target)?;
            mount(Some(&path), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("binding {} into the new root", path.display()))?;
        }
    }
    Ok(())
}

fn mount_disk_root(root: &RootDevice, mounter: &Mounter) -> Result<()> {
    let device = match &root.source {
        RootSource::Pmem(number) => {
            pmem::find(mounter, pmem::Which::Number(*number), DEVICE_TIMEOUT)?
        }
        RootSource::Serial(serial) => disk::find_at_boot(serial, DEVICE_TIMEOUT)?,
    };
    let kind = root.filesystem.as_str();
    let (flags, data) = match (root.read_only, kind) {
        // A journal must not be replayed onto a disk others may be reading.
        (true, "ext4") => (MsFlags::MS_RDONLY, "noload"),
        (true, _) => (MsFlags::MS_RDONLY, ""),
        (false, _) => (MsFlags::empty(), ""),
    };
    let target = Path::new(NEW_ROOT);
    mounter
        .mount(&Mount { from: &device, target, kind, flags, data, mode: 0o755 })
        .with_context(|| format!("the root device {root}"))
}

fn beneath_new_root(path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    Path::new(NEW_ROOT).join(relative)
}
