//! SCSI disks: attached while the VM runs, mounted in the guest, counted, taken away.
//!
//! ```text
//!   add:    reserve slot ─► open file ─► plug in ─► (with a path) reserve mount ─► guest mounts
//!   remove: guest unmounts ─► guest lets go of the disk ─► unplug ─► slot is free
//! ```
//!
//! What is decided is in [`slots`] and `desk`, what is done in `attach`. The guest finds a disk by
//! the serial we give it, never by the order of probing. The disk's file is opened here and handed to
//! the machine monitor as a descriptor, so no access right is granted on the file and none is left
//! on it when the VM ends.

mod attach;
mod desk;
pub mod slots;

use std::sync::Arc;

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::plug::{Released, to_the_end};

use desk::UseId;

pub use coracle_vmm::DiskFormat;
pub(crate) use desk::{Desk, SavedDesk};

/// Who may open a disk's file (seed `VMAccessType`).
///
/// On Windows these are entries of the file's access list, which the seed never takes back. Here the
/// file is opened by the caller's process and passed on as a descriptor, so none of them changes
/// anything on the file: all three are accepted and mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[doc(alias = "VMAccessType")]
pub enum VmAccessType {
    /// Nothing is granted (seed `VMAccessTypeNoop`, 0).
    #[default]
    #[doc(alias = "VMAccessTypeNoop")]
    Noop = 0,
    /// All VMs of the host (seed `VMAccessTypeGroup`, 1).
    #[doc(alias = "VMAccessTypeGroup")]
    Group = 1,
    /// This VM alone (seed `VMAccessTypeIndividual`, 2).
    #[doc(alias = "VMAccessTypeIndividual")]
    Individual = 2,
}

/// What a disk is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// An image file (the seed's `VirtualDisk`).
    Image(DiskFormat),
    /// A block device of the host (the seed's `PassThru`).
    Physical,
}

/// A disk to attach.
#[derive(Debug, Clone)]
pub struct DiskRequest {
    /// The file or device on the host. The disk is known by this text exactly as it is.
    pub host_path: String,
    /// What it is.
    pub kind: DiskKind,
    /// Where the guest mounts it; empty attaches without a mount.
    pub guest_path: String,
    /// Refuse writes.
    pub read_only: bool,
    /// `ext4`, `xfs` or `erofs`; empty lets the guest look at the disk.
    pub filesystem: String,
}

/// A use of a SCSI disk (seed `SCSIMount`).
#[derive(Debug)]
#[doc(alias = "SCSIMount")]
pub struct ScsiMount {
    /// Path on the host, as given.
    pub host_path: String,
    /// Where it is mounted in the guest; empty if it is only attached.
    pub uvm_path: String,
    /// Its controller, 0 to 3.
    pub controller: u8,
    /// Its unit on the controller, 0 to 63.
    pub lun: u8,
    vm: UtilityVm,
    id: UseId,
}

impl ScsiMount {
    /// Names this use among those of its VM, also to a later owner.
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// Ends this use: the mount goes with its last use, and so does the attachment.
    ///
    /// # Errors
    /// As [`UtilityVm::remove_scsi`]; it can be tried again. [`UvmError::NotAttached`] when this
    /// use was ended before.
    #[doc(alias = "Release")]
    pub async fn release(&self) -> Result<()> {
        let used = locked(&self.vm.machine.scsi).take(self.id).ok_or(UvmError::NotAttached);
        let done = match used {
            Ok(used) => self.vm.end_use((self.id, used)).await,
            Err(gone) => Err(gone),
        };
        if let Err(error) = &done {
            tracing::warn!(path = self.host_path, %error, "cannot release a SCSI disk");
        }
        done
    }
}

impl DiskKind {
    /// An image's kind by the name of its file: `.qcow2`, `.vhd`, `.vhdx`, and raw for all others.
    /// What is *in* the file is never asked: a guest could have written it.
    pub fn of_image(host_path: &str) -> Self {
        let extension = std::path::Path::new(host_path).extension().and_then(|e| e.to_str());
        Self::Image(match extension.unwrap_or_default().to_ascii_lowercase().as_str() {
            "qcow2" => DiskFormat::Qcow2,
            "vhd" => DiskFormat::Vhd,
            "vhdx" => DiskFormat::Vhdx,
            _ => DiskFormat::Raw,
        })
    }
}

impl UtilityVm {
    /// Attaches a disk image and, with a `uvm_path`, mounts it there in the guest.
    ///
    /// Adding a disk that is there counts another use of it; at the same path that use shares the
    /// mount, at another it gets a mount of its own, without one it gets the path the disk has.
    /// A VM has up to 64 disks on each of its controllers.
    ///
    /// # Errors
    /// [`UvmError::NoScsiControllers`], [`UvmError::TooManyAttachments`],
    /// [`UvmError::NoAvailableLocation`]; [`UvmError::AttachedReadOnly`],
    /// [`UvmError::GuestPathTaken`]; the host's or the guest's refusal, after which nothing is left.
    #[doc(alias = "AddSCSI")]
    pub async fn add_scsi(
        &self,
        host_path: &str,
        uvm_path: &str,
        read_only: bool,
        _access: VmAccessType,
    ) -> Result<ScsiMount> {
        self.add_disk(DiskRequest {
            host_path: host_path.to_owned(),
            kind: DiskKind::of_image(host_path),
            guest_path: uvm_path.to_owned(),
            read_only,
            filesystem: String::new(),
        })
        .await
    }

    /// As [`UtilityVm::add_scsi`], for a block device of the host.
    ///
    /// # Errors
    /// As there; and a path that is no block device.
    #[doc(alias = "AddSCSIPhysicalDisk")]
    pub async fn add_scsi_physical_disk(
        &self,
        host_path: &str,
        uvm_path: &str,
        read_only: bool,
    ) -> Result<ScsiMount> {
        self.add_disk(DiskRequest {
            host_path: host_path.to_owned(),
            kind: DiskKind::Physical,
            guest_path: uvm_path.to_owned(),
            read_only,
            filesystem: String::new(),
        })
        .await
    }

    /// Attaches a disk with everything said about it.
    ///
    /// Cancel safe: a caller that goes away leaves the disk as if it had not asked.
    ///
    /// # Errors
    /// As [`UtilityVm::add_scsi`].
    pub async fn add_disk(&self, request: DiskRequest) -> Result<ScsiMount> {
        let vm = self.clone();
        let add = async move {
            let machine = vm.machine.clone();
            let added = vm.add_disk_to_the_end(request).await;
            machine.note().await;
            added
        };
        to_the_end(add, |nobodys: ScsiMount| async move {
            // It logs what goes wrong.
            let _ = nobodys.release().await;
        })
        .await
    }

    async fn add_disk_to_the_end(self, request: DiskRequest) -> Result<ScsiMount> {
        self.machine.may_plug("attach a SCSI disk")?;
        let disk = self.machine.attach_disk(&request).await?;
        if !request.guest_path.is_empty()
            && let Err(error) = self.machine.mount_disk(&request, &disk).await
        {
            self.machine.give_disk_back(&request.host_path).await;
            return Err(error);
        }
        let (id, uvm_path) = {
            let mut desk = locked(&self.machine.scsi);
            let guest_path = Some(request.guest_path.clone()).filter(|path| !path.is_empty());
            let id = desk.begin(desk::Use { host_path: request.host_path.clone(), guest_path });
            let there = desk.guest_path(&request.host_path).unwrap_or_default();
            (id, if request.guest_path.is_empty() { there } else { request.guest_path })
        };
        let (controller, lun) = (disk.slot.controller, disk.slot.lun);
        Ok(ScsiMount { host_path: request.host_path, uvm_path, controller, lun, vm: self, id })
    }

    /// Ends the latest use of a disk.
    ///
    /// # Errors
    /// [`UvmError::NoScsiControllers`], [`UvmError::NotAttached`]; the guest or the host cannot let
    /// go: the use stays, and removing can be tried again.
    #[doc(alias = "RemoveSCSI")]
    pub async fn remove_scsi(&self, host_path: &str) -> Result<()> {
        if self.machine.scsi_controllers == 0 {
            return Err(UvmError::NoScsiControllers);
        }
        // Found and taken at once, so that two who remove at the same time end two uses.
        let taken = locked(&self.machine.scsi).take_latest(host_path);
        self.end_use(taken.ok_or(UvmError::NotAttached)?).await
    }

    /// Where a disk is mounted in the guest; empty for one that is only attached.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`].
    #[doc(alias = "GetScsiUvmPath")]
    pub fn get_scsi_uvm_path(&self, host_path: &str) -> Result<String> {
        locked(&self.machine.scsi).guest_path(host_path).ok_or(UvmError::NotAttached)
    }

    /// The handles of all uses there are: for who has adopted the VM.
    pub fn scsi_mounts(&self) -> Vec<ScsiMount> {
        let desk = locked(&self.machine.scsi);
        let handle = |id: UseId| {
            let used = desk.used(id)?;
            let slot = desk.disks.get(&used.host_path)?.slot;
            let there = desk.guest_path(&used.host_path).unwrap_or_default();
            Some(ScsiMount {
                host_path: used.host_path.clone(),
                uvm_path: used.guest_path.clone().unwrap_or(there),
                controller: slot.controller,
                lun: slot.lun,
                vm: self.clone(),
                id,
            })
        };
        desk.uses().into_iter().filter_map(handle).collect()
    }

    /// Ends a use that was taken off the desk.
    async fn end_use(&self, (id, used): (UseId, desk::Use)) -> Result<()> {
        let machine = self.machine.clone();
        to_the_end(async move { machine.end_use(id, used).await }, |()| async {}).await
    }
}

impl Machine {
    async fn end_use(self: Arc<Self>, id: UseId, mut used: desk::Use) -> Result<()> {
        let done = self.take_away(&mut used).await;
        if done.is_err() {
            locked(&self.scsi).put_back(id, used);
        }
        self.note().await;
        done
    }

    /// Gives back the mount and then the attachment; what is done already is gone from `used`.
    async fn take_away(&self, used: &mut desk::Use) -> Result<()> {
        // That the mount goes is written down; with no use left, whoever reads it takes the disk too.
        let mut is_written = false;
        if let Some(path) = used.guest_path.clone() {
            loop {
                let released = locked(&self.scsi).mounts.release(&path);
                match released {
                    Released::Busy(fate) => drop(fate.wait().await),
                    Released::Last(mount) => {
                        self.unmount_disk(&path, &mount).await?;
                        is_written = true;
                        break;
                    }
                    Released::Used | Released::Absent => break,
                }
            }
            used.guest_path = None;
        }
        loop {
            let released = locked(&self.scsi).disks.release(&used.host_path);
            match released {
                Released::Busy(fate) => drop(fate.wait().await),
                Released::Last(disk) if is_written => {
                    return self.detach_disk_as_written(&used.host_path, &disk).await;
                }
                Released::Last(disk) => return self.detach_disk(&used.host_path, &disk).await,
                Released::Used | Released::Absent => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_types_are_numbered_as_the_seeds() {
        let all = [VmAccessType::Noop, VmAccessType::Group, VmAccessType::Individual];
        assert_eq!(all.map(|access| access as u8), [0, 1, 2]);
        assert_eq!(VmAccessType::default(), VmAccessType::Noop);
    }

    #[test]
    fn an_images_format_is_told_by_its_name_alone() {
        let kinds =
            ["/a.qcow2", "/a.VHD", "/a.vhdx", "/a.img", "/a", "/vhd"].map(DiskKind::of_image);
        let formats = [
            DiskFormat::Qcow2,
            DiskFormat::Vhd,
            DiskFormat::Vhdx,
            DiskFormat::Raw,
            DiskFormat::Raw,
            DiskFormat::Raw,
        ];
        assert_eq!(kinds, formats.map(DiskKind::Image));
    }
}
