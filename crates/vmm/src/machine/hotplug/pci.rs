//! A PCI device: the connection to its server, if one serves it, and the device itself.

use serde_json::Value;

use super::Bench;
use crate::{
    DeviceId, PciAddress, PciDevice, PciSource, VmmError,
    qemu::device as shape,
    qmp::command::{ChardevAdd, ChardevRemove, CloseFd, Command, GetFd, QueryPci},
};

impl Bench<'_> {
    pub(super) async fn plug_pci(&self, pci: PciDevice) -> Result<(), VmmError> {
        let PciDevice { id, source } = pci;
        let shape = shape::pci_device(&id, &source);
        let server = match source {
            PciSource::Disk(server) | PciSource::Controller(server) | PciSource::Vsock(server) => {
                server
            }
            PciSource::Host(_) | PciSource::Mediated(_) | PciSource::Teaching => {
                return self.add_pci(&id, &shape).await;
            }
        };
        self.connect_server(&id, server).await?;
        if let Err(error) = self.add_pci(&id, &shape).await {
            self.undo(ChardevRemove { id: shape::port_chardev(&id) }).await;
            return Err(error);
        }
        Ok(())
    }

    async fn add_pci(&self, id: &DeviceId, shape: &Value) -> Result<(), VmmError> {
        self.effects().announce("pci.device")?;
        self.add_behind_bridge(id, |bus| {
            let mut device = shape.clone();
            device["bus"] = bus.into();
            device
        })
        .await
    }

    /// Hands over a connection to the server of a device, as a character device.
    pub(super) async fn connect_server(
        &self,
        id: &DeviceId,
        server: std::os::fd::OwnedFd,
    ) -> Result<(), VmmError> {
        let name = shape::port_chardev(id);
        self.effects().announce("server.descriptor")?;
        let passed = self.client.run_with(GetFd { name: name.clone() }, server).await;
        self.shared.result(GetFd::NAME, passed)?;
        let result = async {
            self.effects().announce("server.backend")?;
            self.run(ChardevAdd(shape::server_backend(id))).await.map(|_| ())
        };
        if let Err(error) = result.await {
            self.undo(CloseFd { name }).await;
            return Err(error);
        }
        Ok(())
    }

    /// Where the guest sees the device; it has numbered the buses itself.
    pub(super) async fn pci_address(&self, id: &DeviceId) -> Result<PciAddress, VmmError> {
        let buses = self.run(QueryPci {}).await?;
        let found = buses.iter().find_map(|bus| bus.find(id.as_str()));
        found.ok_or_else(|| VmmError::UnknownDevice { id: id.clone() })
    }
}
