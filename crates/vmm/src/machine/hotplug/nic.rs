//! A network card: the way to what carries its packets, the backend on it, the card.

use std::os::fd::OwnedFd;

use super::Bench;
use crate::{
    DeviceId, Nic, NicSource, VmmError,
    qemu::device as shape,
    qmp::command::{
        ChardevAdd, ChardevRemove, CloseFd, Command, GetFd, NetdevAddTap, NetdevAddUser,
        NetdevAddVhostUser, NetdevDel, QueryKvm, Words,
    },
};

impl Bench<'_> {
    pub(super) async fn plug_nic(&self, nic: Nic) -> Result<(), VmmError> {
        let Nic { id, mac, source } = nic;
        let chardev = match source {
            NicSource::Tap(tap) => {
                self.add_tap(&id, tap).await?;
                None
            }
            NicSource::VhostUser(server) => Some(self.add_vhost_user(&id, server).await?),
            NicSource::User(network) => {
                self.effects().announce("nic.backend")?;
                let text = |text: String| Words { text };
                self.run(NetdevAddUser {
                    kind: "user",
                    id: shape::nic_backend(&id),
                    ipv6: false,
                    restrict: network.is_restricted,
                    hostfwd: network.forwards.into_iter().map(text).collect(),
                })
                .await?;
                None
            }
        };
        let result = async {
            // QEMU 7.2 would have KVM see to the interrupts of a card on a server; without it, it dies.
            let has_msi = chardev.is_none() || self.run(QueryKvm {}).await?.enabled;
            self.effects().announce("nic.device")?;
            self.add_behind_bridge(&id, |bus| shape::nic_device(&id, mac, bus, has_msi)).await
        };
        if let Err(error) = result.await {
            self.undo(NetdevDel { id: shape::nic_backend(&id) }).await;
            if let Some(id) = chardev {
                self.undo(ChardevRemove { id }).await;
            }
            return Err(error);
        }
        Ok(())
    }

    async fn add_tap(&self, id: &DeviceId, tap: OwnedFd) -> Result<(), VmmError> {
        let name = id.to_string();
        self.effects().announce("nic.descriptor")?;
        let passed = self.client.run_with(GetFd { name: name.clone() }, tap).await;
        self.shared.result(GetFd::NAME, passed)?;
        let result = async {
            self.effects().announce("nic.backend")?;
            let id = shape::nic_backend(id);
            self.run(NetdevAddTap { kind: "tap", id, fd: name.clone() }).await.map(|_| ())
        };
        if let Err(error) = result.await {
            self.undo(CloseFd { name }).await;
            return Err(error);
        }
        Ok(())
    }

    /// Returns the character device on which the backend is.
    ///
    /// A network backend passes descriptors to its server, which QEMU allows by sockets it has dialled
    /// itself alone; so it is given the socket's file, and dials that by its own descriptor's path.
    async fn add_vhost_user(&self, id: &DeviceId, server: OwnedFd) -> Result<String, VmmError> {
        let chardev = shape::port_chardev(id);
        self.effects().announce("nic.descriptor")?;
        let lent = self.lend(id, server).await?;
        let result = async {
            self.effects().announce("nic.server")?;
            self.run(ChardevAdd(shape::dialled_backend(id, &lent.path))).await.map(|_| ())
        };
        let result = result.await;
        // The connection stays without it.
        self.undo(lent.back).await;
        result?;
        let result = async {
            self.effects().announce("nic.backend")?;
            let id = shape::nic_backend(id);
            let add = NetdevAddVhostUser { kind: "vhost-user", id, chardev: chardev.clone() };
            self.run(add).await.map(|_| ())
        };
        if let Err(error) = result.await {
            self.undo(ChardevRemove { id: chardev }).await;
            return Err(error);
        }
        Ok(chardev)
    }
}
