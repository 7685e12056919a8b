//! Persistent memory: a descriptor, the memory it stands for, the device.
//!
//! Memory is mapped by path only, so the path is the monitor's own descriptor's. Once mapped, that is no
//! longer needed.

use super::Bench;
use crate::{
    DeviceId, Pmem, VmmError,
    qemu::device as shape,
    qmp::command::{ObjectAdd, ObjectDel, QomGet},
};

impl Bench<'_> {
    pub(super) async fn plug_pmem(&self, pmem: Pmem) -> Result<(), VmmError> {
        let id = pmem.id.clone();
        let file = pmem.file.try_clone().map_err(|source| VmmError::Host {
            operation: "duplicate the descriptor of",
            object: id.to_string(),
            source,
        })?;
        self.effects().announce("pmem.descriptor")?;
        let lent = self.lend(&id, file).await?;
        let result = async {
            self.effects().announce("pmem.memory")?;
            self.run(ObjectAdd(shape::pmem_memory(&pmem, &lent.path))).await.map(|_| ())
        };
        let result = result.await;
        // The mapping stays without it.
        self.undo(lent.back).await;
        result?;
        let result = async {
            self.effects().announce("pmem.device")?;
            self.add_behind_bridge(&id, |bus| shape::pmem_device(&id, bus)).await
        };
        if let Err(error) = result.await {
            self.undo(ObjectDel { id: shape::pmem_memory_id(&id) }).await;
            return Err(error);
        }
        Ok(())
    }

    pub(super) async fn pmem_address(&self, id: &DeviceId) -> Result<u64, VmmError> {
        let path = format!("/machine/peripheral/{id}");
        let address = self.run(QomGet { path, property: "memaddr" }).await?;
        address.as_u64().ok_or_else(|| VmmError::UnknownDevice { id: id.clone() })
    }
}
