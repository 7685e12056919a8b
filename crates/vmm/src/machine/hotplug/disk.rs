//! A SCSI disk: a descriptor set, the block node on it, the disk.

use super::Bench;
use crate::{
    DeviceId, Disk, DiskPlace, VmmError,
    qemu::device as shape,
    qmp::{
        QmpError,
        command::{AddFd, BlockdevAdd, BlockdevDel, Command, QomList, RemoveFd},
    },
};

impl Bench<'_> {
    pub(super) async fn plug_disk(&self, disk: Disk) -> Result<(), VmmError> {
        let id = disk.id.clone();
        if disk.place == DiskPlace::Virtio {
            return Err(VmmError::Config(format!("the virtio disk {id} is not there from launch")));
        }
        let kind = shape::file_kind(&disk.file)?;
        let objects = self.run(QomList { path: "/objects".into() }).await?;
        let throttled = objects.iter().any(|object| object.name == shape::THROTTLE);
        self.effects().announce("disk.descriptor")?;
        let (node, device) = (shape::disk_node(&disk, kind, throttled), shape::disk_device(&disk));
        let opaque = id.to_string();
        let added = self.client.run_with(AddFd { opaque }, disk.file).await;
        let set = self.shared.result(AddFd::NAME, added)?.fdset_id;
        let result = async {
            self.effects().announce("disk.node")?;
            self.add_node(&id, node(set)).await?;
            let result = async {
                self.effects().announce("disk.device")?;
                self.add_device(&id, device).await
            };
            if let Err(error) = result.await {
                self.undo(BlockdevDel { node_name: id.to_string() }).await;
                return Err(error);
            }
            Ok(())
        };
        if let Err(error) = result.await {
            self.undo(RemoveFd { fdset_id: set }).await;
            return Err(error);
        }
        Ok(())
    }

    async fn add_node(&self, id: &DeviceId, node: serde_json::Value) -> Result<(), VmmError> {
        match self.client.run(BlockdevAdd(node)).await {
            Ok(_) => Ok(()),
            Err(QmpError::Refused { desc, .. }) if desc.starts_with("Duplicate") => {
                Err(VmmError::DeviceExists { id: id.clone() })
            }
            Err(error) => Err(self.shared.failure(BlockdevAdd::NAME, error)),
        }
    }
}
