//! From what was asked for to the verb of the VM that does it, and back.

use std::path::Path;

use coracle_uvm::schema::VirtualPciDevice;
use coracle_uvm::scsi::{DiskFormat, DiskKind, DiskRequest, ScsiMount};
use coracle_uvm::share::{Plan9Share, VirtioFsShare};
use coracle_uvm::vpci::{VhostUserDisk, VpciDevice};
use coracle_uvm::{PipeMount, UtilityVm, UvmError};
use serde::{Deserialize, Serialize};

use super::spec::{Kind, PlugSpec, ShareType, VHOST_USER_DISK};

/// What takes a thing out again.
#[derive(Debug)]
pub(crate) enum Handle {
    Disk(ScsiMount),
    VirtioFs(VirtioFsShare),
    Plan9(Plan9Share),
    Pipe(PipeMount),
    /// By its path on the host.
    Pmem(String),
    Device(VpciDevice),
    /// A device that is a disk, mounted.
    Served(VhostUserDisk),
}

/// What finds a handle again in a VM that was adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HandleId {
    Disk(u64),
    VirtioFs(String),
    Plan9(String),
    Pipe(String),
    Pmem(String),
    Device(String),
    /// A device that is a disk, and where it is mounted.
    Served(String, String),
}

impl Handle {
    pub(crate) fn id(&self) -> HandleId {
        match self {
            Self::Disk(mount) => HandleId::Disk(mount.id()),
            Self::VirtioFs(share) => HandleId::VirtioFs(share.tag().to_owned()),
            Self::Plan9(share) => HandleId::Plan9(share.name().to_owned()),
            Self::Pipe(pipe) => HandleId::Pipe(pipe.host_path.clone()),
            Self::Pmem(path) => HandleId::Pmem(path.clone()),
            Self::Device(device) => HandleId::Device(device.id.clone()),
            Self::Served(disk) => HandleId::Served(disk.device.id.clone(), disk.uvm_path.clone()),
        }
    }

    /// Finds it in a VM; none if the VM has it no more.
    pub(crate) fn find(vm: &UtilityVm, id: &HandleId) -> Option<Self> {
        Some(match id {
            HandleId::Disk(id) => {
                Self::Disk(vm.scsi_mounts().into_iter().find(|mount| mount.id() == *id)?)
            }
            HandleId::VirtioFs(tag) => Self::VirtioFs(vm.virtiofs_share(tag)?),
            HandleId::Plan9(name) => Self::Plan9(vm.plan9_share(name)?),
            HandleId::Pipe(path) => {
                Self::Pipe(vm.pipes().into_iter().find(|pipe| pipe.host_path == *path)?)
            }
            HandleId::Pmem(path) => {
                vm.vpmem_uses().contains_key(path).then(|| Self::Pmem(path.clone()))?
            }
            HandleId::Device(id) => Self::Device(vm.assigned_device(id)?),
            HandleId::Served(id, uvm_path) => Self::Served(VhostUserDisk {
                device: vm.assigned_device(id)?,
                uvm_path: uvm_path.clone(),
            }),
        })
    }
}

/// Where a thing is.
#[derive(Debug, Default)]
pub(crate) struct Place {
    pub(crate) guest_path: String,
    pub(crate) slot: Option<String>,
}

/// Plugs a thing into the VM. `number` is the thing's own, for a path nobody else has.
pub(crate) async fn attach(
    vm: &UtilityVm,
    number: u64,
    spec: &PlugSpec,
) -> Result<(Handle, Place), UvmError> {
    match spec.kind {
        Kind::Disk => disk(vm, number, spec).await,
        Kind::Share => share(vm, number, spec).await,
        Kind::Pmem => {
            let guest_path = vm.add_vpmem(&spec.source).await?;
            Ok((Handle::Pmem(spec.source.clone()), Place { guest_path, slot: None }))
        }
        Kind::Pipe => {
            let guest_path = format!("/run/pipes/p{number}");
            let pipe = vm.add_pipe_at(&spec.source, &guest_path).await?;
            Ok((Handle::Pipe(pipe), Place { guest_path, slot: None }))
        }
        Kind::Device => device(vm, number, spec).await,
    }
}

async fn device(vm: &UtilityVm, number: u64, spec: &PlugSpec) -> Result<(Handle, Place), UvmError> {
    let served = spec.source.strip_prefix(VHOST_USER_DISK);
    if let (Some(socket), Some(_)) = (served, &spec.destination) {
        let at = format!("/run/mounts/m{number}");
        let filesystem = spec.filesystem.as_deref().unwrap_or_default();
        let disk = vm.add_vhost_user_disk(socket, &at, filesystem, spec.read_only).await?;
        let slot = Some(disk.device.address.to_string());
        return Ok((Handle::Served(disk), Place { guest_path: at, slot }));
    }
    let device = vm.assign_device(VirtualPciDevice::at(spec.source.clone())).await?;
    let slot = Some(device.address.to_string());
    Ok((Handle::Device(device), Place { guest_path: String::new(), slot }))
}

async fn disk(vm: &UtilityVm, number: u64, spec: &PlugSpec) -> Result<(Handle, Place), UvmError> {
    let seen = spec.destination.is_some() && !spec.is_block_device();
    let mount = vm
        .add_disk(DiskRequest {
            host_path: spec.source.clone(),
            kind: match spec.format.as_deref() {
                Some("raw") => DiskKind::Image(DiskFormat::Raw),
                Some("qcow2") => DiskKind::Image(DiskFormat::Qcow2),
                Some("vhd") => DiskKind::Image(DiskFormat::Vhd),
                Some("vhdx") => DiskKind::Image(DiskFormat::Vhdx),
                Some(_) | None => DiskKind::of_image(&spec.source),
            },
            guest_path: if seen { format!("/run/mounts/m{number}") } else { String::new() },
            read_only: spec.read_only,
            filesystem: spec.filesystem.clone().unwrap_or_default(),
        })
        .await?;
    let place = Place {
        guest_path: mount.uvm_path.clone(),
        slot: Some(format!("{}:{}", mount.controller, mount.lun)),
    };
    Ok((Handle::Disk(mount), place))
}

async fn share(vm: &UtilityVm, number: u64, spec: &PlugSpec) -> Result<(Handle, Place), UvmError> {
    let at = format!("/run/mounts/m{number}");
    match spec.share_type {
        ShareType::VirtioFs => {
            let share = vm.add_virtiofs(&spec.source, &at, spec.read_only).await?;
            let guest_path = share.uvm_path.clone();
            Ok((Handle::VirtioFs(share), Place { guest_path, slot: None }))
        }
        ShareType::Plan9 => {
            // A file is shared as its directory, restricted to its name.
            let source = Path::new(&spec.source);
            let is_file = source.metadata().is_ok_and(|file| !file.is_dir());
            let (folder, name) = match (source.parent(), source.file_name()) {
                (Some(folder), Some(name)) if is_file => (folder, name.to_str()),
                (Some(_) | None, _) => (source, None),
            };
            let folder = folder.to_string_lossy();
            let names: Vec<&str> = name.into_iter().collect();
            let share = vm.add_plan9(&folder, &at, spec.read_only, name.is_some(), &names).await?;
            let guest_path = match name {
                Some(name) => format!("{at}/{name}"),
                None => at,
            };
            Ok((Handle::Plan9(share), Place { guest_path, slot: None }))
        }
    }
}

impl Handle {
    /// Takes the thing out; gives itself back if that fails.
    pub(crate) async fn detach(self, vm: &UtilityVm) -> Result<(), (Self, UvmError)> {
        let done = match &self {
            Self::Disk(mount) => mount.release().await,
            Self::VirtioFs(share) => share.release().await,
            Self::Plan9(share) => share.release().await,
            Self::Pipe(pipe) => pipe.release().await,
            Self::Pmem(path) => vm.remove_vpmem(path).await,
            Self::Device(device) => device.release().await,
            Self::Served(disk) => disk.release().await,
        };
        match done {
            Ok(()) | Err(UvmError::NotAttached | UvmError::NoVpciDevice { .. }) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    /// What is the matter with it; `ok` if nothing is.
    pub(crate) fn state(&self) -> &'static str {
        let is_broken = match self {
            Self::Disk(_) | Self::Pipe(_) | Self::Pmem(_) => false,
            Self::Device(_) | Self::Served(_) => false,
            Self::VirtioFs(share) => share.is_broken(),
            Self::Plan9(share) => share.is_broken(),
        };
        if is_broken { "broken: its server has died" } else { "ok" }
    }
}
