//! What attaching and detaching a disk does, on the host and in the guest.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;

use coracle_bridge::message::{CoracleDisk, MappedVirtualDisk, Resource, Verb};
use coracle_vmm::{Device, DeviceId, Disk, DiskFormat, DiskPlace, VmmError};

use super::desk::{Attached, Mounted, SavedDesk};
use super::{DiskKind, DiskRequest};
use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, locked};
use crate::modify::ModifyError;
use crate::plug::{Released, Reserved, share};

impl Machine {
    /// A reference to the disk, attached by us or by whoever was first.
    pub(super) async fn attach_disk(&self, request: &DiskRequest) -> Result<Attached> {
        let path = &request.host_path;
        loop {
            let reserved =
                locked(&self.scsi).reserve_disk(path, request.read_only, self.scsi_controllers)?;
            match reserved {
                Reserved::There(disk) => return Ok(disk),
                Reserved::Arriving(disk, fate) => {
                    return fate.wait().await.map(|()| disk).map_err(UvmError::Shared);
                }
                Reserved::Leaving(fate) => drop(fate.wait().await),
                Reserved::First(disk) => {
                    let plugged = async {
                        self.intend("attach a SCSI disk").await?;
                        self.plug_disk(request, &disk).await
                    };
                    return share(plugged.await, |outcome| {
                        locked(&self.scsi).disks.settle(path, outcome);
                    })
                    .map(|()| disk);
                }
            }
        }
    }

    async fn plug_disk(&self, request: &DiskRequest, disk: &Attached) -> Result<()> {
        let file = open(request)?;
        let format = match request.kind {
            DiskKind::Image(format) => format,
            DiskKind::Physical => DiskFormat::Raw,
        };
        let device = Device::Disk(Disk {
            id: device_id(disk),
            file: file.into(),
            format,
            read_only: request.read_only,
            place: DiskPlace::Scsi {
                controller: disk.slot.controller.into(),
                lun: disk.slot.lun.into(),
            },
            serial: disk.serial.clone(),
            cache: self.host.disk_cache,
        });
        let failed = |source| failed_add(&request.host_path, source);
        self.vm.plug(device).await.map_err(|source| failed(ModifyError::Adding(source)))?;
        if self.guest().is_none() {
            // Before the start nobody can be asked; the guest finds the disk when it boots.
            return Ok(());
        }
        // Without a mount path the guest only sees to it that the disk is there.
        let Err(refused) = self.ask_guest(Verb::Add, mapped(disk, "", request, false)).await else {
            return Ok(());
        };
        if let Err(error) = self.vm.unplug(&device_id(disk), self.host.cleanup_timeout).await {
            tracing::error!(path = request.host_path, %error, "a refused disk stays plugged in");
        }
        Err(failed(refused))
    }

    /// Has the guest mount the disk, unless it is mounted at that path already.
    pub(super) async fn mount_disk(&self, request: &DiskRequest, disk: &Attached) -> Result<()> {
        let path = &request.guest_path;
        let wanted = Mounted { host_path: request.host_path.clone(), read_only: request.read_only };
        loop {
            let reserved = locked(&self.scsi).reserve_mount(path, &wanted)?;
            match reserved {
                Reserved::There(_) => return Ok(()),
                Reserved::Arriving(_, fate) => {
                    return fate.wait().await.map_err(UvmError::Shared);
                }
                Reserved::Leaving(fate) => drop(fate.wait().await),
                Reserved::First(_) => {
                    let asked = async {
                        self.intend("mount a SCSI disk").await?;
                        self.ask_guest(Verb::Add, mapped(disk, path, request, false))
                            .await
                            .map_err(|source| failed_add(&request.host_path, source))
                    };
                    return share(asked.await, |outcome| {
                        locked(&self.scsi).mounts.settle(path, outcome);
                    });
                }
            }
        }
    }

    /// Gives back a reference whose mount came to nothing. That has a time-out of its own, and what
    /// goes wrong is only logged: the first failure is what matters.
    pub(super) async fn give_disk_back(&self, host_path: &str) {
        let path = host_path.to_owned();
        let released = locked(&self.scsi).disks.release(&path);
        if let Released::Last(disk) = released
            && let Err(error) = self.detach_disk(host_path, &disk).await
        {
            tracing::error!(path, %error, "cannot undo the attaching of a disk");
            // It stays attached for whoever adds or removes it next.
            locked(&self.scsi).begin(super::desk::Use { host_path: path, guest_path: None });
        }
    }

    /// Has the guest unmount the disk and keep it.
    pub(super) async fn unmount_disk(&self, guest_path: &str, mount: &Mounted) -> Result<()> {
        let disk = locked(&self.scsi).disks.get(&mount.host_path).cloned();
        // A mount holds a reference to its disk.
        let Some(disk) = disk else { return Ok(()) };
        let request = DiskRequest::mounted(mount, guest_path);
        let asked = async {
            self.intend("unmount a SCSI disk").await?;
            self.ask_guest(Verb::Remove, mapped(&disk, guest_path, &request, true))
                .await
                .map_err(|source| failed_remove(&mount.host_path, source))
        };
        let path = guest_path.to_owned();
        share(asked.await, |outcome| locked(&self.scsi).mounts.depart(&path, outcome))
    }

    /// Has the guest let go of the disk, then unplugs it. The guest is asked even if it never
    /// mounted the disk: pulling out a disk that it knows confuses it, and the slot is soon reused.
    pub(super) async fn detach_disk(&self, host_path: &str, disk: &Attached) -> Result<()> {
        let unplugged = async {
            self.intend("detach a SCSI disk").await?;
            self.unplug_disk(host_path, disk).await
        };
        self.departed(host_path, unplugged.await)
    }

    /// The same where it is written down already that the disk goes.
    pub(super) async fn detach_disk_as_written(
        &self,
        host_path: &str,
        disk: &Attached,
    ) -> Result<()> {
        self.departed(host_path, self.unplug_disk(host_path, disk).await)
    }

    fn departed(&self, host_path: &str, unplugged: Result<()>) -> Result<()> {
        let path = host_path.to_owned();
        share(unplugged, |outcome| locked(&self.scsi).disks.depart(&path, outcome))
    }

    /// Takes away disks and mounts that were on their way in or out when this VM's former owner died,
    /// and references of which nobody was told. The guest may never have heard of them.
    pub(crate) async fn clear_scsi(&self, saved: &SavedDesk) {
        for (path, mount) in saved.mounts_underway() {
            let released = locked(&self.scsi).mounts.release(path);
            let disk = locked(&self.scsi).disks.get(&mount.host_path).cloned();
            if let (Released::Last(_), Some(disk)) = (released, disk) {
                let request = DiskRequest::mounted(mount, path);
                self.forget_in_guest(path, mapped(&disk, path, &request, true)).await;
            }
            locked(&self.scsi).mounts.depart(path, &Ok(()));
        }
        for (path, disk) in saved.disks_underway() {
            // Not held over what follows.
            let released = locked(&self.scsi).disks.release(path);
            if matches!(released, Released::Last(_)) {
                self.forget_in_guest(path, ejected(disk)).await;
                self.unplug_leftover(&device_id(disk)).await;
                locked(&self.scsi).disks.depart(path, &Ok(()));
            }
        }
        let (mounts, disks) = locked(&self.scsi).surplus();
        for path in mounts {
            let released = locked(&self.scsi).mounts.release(&path);
            if let Released::Last(mount) = released
                && let Err(error) = self.unmount_disk(&path, &mount).await
            {
                tracing::error!(path, %error, "a mount nobody was told of stays");
            }
        }
        for path in disks {
            let released = locked(&self.scsi).disks.release(&path);
            if let Released::Last(disk) = released
                && let Err(error) = self.detach_disk(&path, &disk).await
            {
                tracing::error!(path, %error, "a disk nobody was told of stays");
            }
        }
    }

    async fn unplug_disk(&self, host_path: &str, disk: &Attached) -> Result<()> {
        let failed = |source| failed_remove(host_path, source);
        if self.guest().is_some() {
            self.ask_guest(Verb::Remove, ejected(disk)).await.map_err(failed)?;
        }
        match self.vm.unplug(&device_id(disk), self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => Ok(()),
            Err(source) => Err(failed(ModifyError::Removing(source))),
        }
    }
}

impl DiskRequest {
    /// What a mount that is there was asked for with, as far as its end needs to know.
    fn mounted(mount: &Mounted, guest_path: &str) -> Self {
        Self {
            host_path: mount.host_path.clone(),
            kind: DiskKind::Physical,
            guest_path: guest_path.to_owned(),
            read_only: mount.read_only,
            filesystem: String::new(),
        }
    }
}

/// Lets go of the whole disk.
fn ejected(disk: &Attached) -> Resource {
    Resource::MappedVirtualDisk(MappedVirtualDisk {
        lun: disk.slot.lun,
        controller: disk.slot.controller,
        coracle: Some(CoracleDisk {
            serial: disk.serial.clone(),
            unit: true,
            ..CoracleDisk::default()
        }),
        ..MappedVirtualDisk::default()
    })
}

fn mapped(disk: &Attached, guest_path: &str, request: &DiskRequest, keep: bool) -> Resource {
    Resource::MappedVirtualDisk(MappedVirtualDisk {
        mount_path: guest_path.to_owned(),
        lun: disk.slot.lun,
        controller: disk.slot.controller,
        read_only: request.read_only,
        coracle: Some(CoracleDisk {
            serial: disk.serial.clone(),
            filesystem: if request.filesystem.is_empty() {
                "auto".to_owned()
            } else {
                request.filesystem.clone()
            },
            keep,
            unit: true,
            ..CoracleDisk::default()
        }),
        ..MappedVirtualDisk::default()
    })
}

fn device_id(disk: &Attached) -> DeviceId {
    DeviceId::new(disk.serial.clone()).expect("`disk-` and a number are a device's name")
}

/// Opens the disk with just the rights it is attached with: the monitor gets this descriptor.
fn open(request: &DiskRequest) -> Result<File> {
    let path = &request.host_path;
    let failed =
        |source| UvmError::Source { operation: "open the disk", path: path.into(), source };
    let file = File::options().read(true).write(!request.read_only).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    match request.kind {
        DiskKind::Physical if !kind.is_block_device() => {
            Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no block device")))
        }
        DiskKind::Image(_) if !(kind.is_file() || kind.is_block_device()) => {
            Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")))
        }
        DiskKind::Physical | DiskKind::Image(_) => Ok(file),
    }
}

fn failed_add(path: &str, source: ModifyError) -> UvmError {
    let operation = "failed to modify UVM with new SCSI mount";
    UvmError::Modify { operation, object: path.to_owned(), source }
}

fn failed_remove(path: &str, source: ModifyError) -> UvmError {
    let operation = "failed to remove SCSI disk";
    UvmError::Modify { operation, object: path.to_owned(), source }
}
