//! A network card: the tap's descriptor, the backend on it, the card.

use super::Bench;
use crate::{
    Nic, VmmError,
    qemu::device as shape,
    qmp::command::{CloseFd, Command, GetFd, NetdevAddTap, NetdevDel},
};

impl Bench<'_> {
    pub(super) async fn plug_nic(&self, nic: Nic) -> Result<(), VmmError> {
        let id = nic.id.clone();
        let backend = shape::nic_backend(&id);
        let (mac, name) = (nic.mac, id.to_string());
        self.effects().announce("nic.descriptor")?;
        let passed = self.client.run_with(GetFd { name: name.clone() }, nic.tap).await;
        self.shared.result(GetFd::NAME, passed)?;
        let result = async {
            self.effects().announce("nic.backend")?;
            let add = NetdevAddTap { kind: "tap", id: backend.clone(), fd: name.clone() };
            self.run(add).await.map(|_| ())
        };
        if let Err(error) = result.await {
            self.undo(CloseFd { name }).await;
            return Err(error);
        }
        let result = async {
            self.effects().announce("nic.device")?;
            self.add_behind_bridge(&id, |bus| shape::nic_device(&id, mac, bus)).await
        };
        if let Err(error) = result.await {
            self.undo(NetdevDel { id: backend }).await;
            return Err(error);
        }
        Ok(())
    }
}
