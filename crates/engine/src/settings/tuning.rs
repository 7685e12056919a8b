//! What settings change of a sandbox beyond its options.

use std::path::PathBuf;

use coracle_uvm::options::{ChannelBacking, DiskCache, HostOptions, OwnCgroup, VirtioFsServer};
use serde::{Deserialize, Serialize};

use super::SettingsError;
use crate::plug::{Kind, PlugSpec};

/// What settings change of a sandbox beyond its options. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// The VM's memory is locked into RAM, or the sandbox does not start.
    pub lock_memory: bool,
    /// The VM's memory is made of huge pages.
    pub huge_pages: bool,
    /// Features the processors have beyond the usual, or have not.
    pub cpu_features: Vec<String>,
    /// The host's file that the guest's entropy comes from.
    pub entropy_source: Option<PathBuf>,
    /// Disks are served by a thread of their own.
    pub io_thread: bool,
    /// What the host may keep of disks in memory.
    pub disk_cache: DiskCache,
    /// Neither disks nor persistent memory.
    pub no_disks: bool,
    /// How directories are served by virtio-fs.
    pub virtiofs: VirtioFsServer,
    /// What carries the bytes between host and guest.
    pub channel: ChannelBacking,
    /// A VM that cannot have a control group of its own is refused.
    pub own_cgroup: bool,
    /// The size of /dev/shm in containers, in bytes; none: 64 MiB.
    pub shm_bytes: Option<u64>,
}

impl Tuning {
    /// What of it is the VM's; also of one that is taken over.
    pub(crate) fn tune(&self, cgroup: PathBuf, host: &mut HostOptions) {
        host.lock_memory = self.lock_memory;
        host.huge_pages = self.huge_pages;
        host.cpu_features.clone_from(&self.cpu_features);
        host.entropy_source.clone_from(&self.entropy_source);
        host.io_thread = self.io_thread;
        host.disk_cache = self.disk_cache;
        host.virtiofs.clone_from(&self.virtiofs);
        host.channel.clone_from(&self.channel);
        host.cgroup = Some(OwnCgroup { path: cgroup, is_required: self.own_cgroup });
    }

    /// Whether this may be plugged in.
    ///
    /// # Errors
    /// It is a block device, and they are forbidden.
    pub fn admits(&self, plug: &PlugSpec) -> Result<(), SettingsError> {
        let is_block = match plug.kind {
            Kind::Disk | Kind::Pmem => true,
            Kind::Device => plug.source.starts_with("vhost-user-"),
            Kind::Share | Kind::Pipe => false,
        };
        if self.no_disks && is_block {
            return Err(SettingsError::BlockDevice { object: plug.source.clone() });
        }
        Ok(())
    }
}
