//! From what was asked for to the verb of the VM that does it, and back.

use coracle_uvm::scsi::{DiskFormat, DiskKind, DiskRequest, ScsiMount};
use coracle_uvm::{UtilityVm, UvmError};

use super::spec::{Kind, PlugSpec};

/// What takes a thing out again.
#[derive(Debug)]
pub(crate) enum Handle {
    Disk(ScsiMount),
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
        Kind::Pmem | Kind::Share | Kind::Pipe | Kind::Device => Err(UvmError::NotSupported),
    }
}

async fn disk(
    vm: &UtilityVm,
    number: u64,
    spec: &PlugSpec,
) -> Result<(Handle, Place), UvmError> {
    let seen = spec.destination.is_some();
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

impl Handle {
    /// Takes the thing out; gives itself back if that fails.
    pub(crate) async fn detach(self, _vm: &UtilityVm) -> Result<(), (Self, UvmError)> {
        match self {
            Self::Disk(mount) => match mount.release().await {
                Ok(()) | Err(UvmError::NotAttached) => Ok(()),
                Err(error) => Err((Self::Disk(mount), error)),
            },
        }
    }
}
