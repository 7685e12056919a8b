//! A network card: the way to what carries its packets, the backend on it, the card.

use std::os::fd::OwnedFd;

use super::Bench;
use crate::{
    DeviceId, Nic, NicSource, VmmError,
    qemu::device as shape,
    qmp::command::{
        AddFd, ChardevAdd, ChardevRemove, CloseFd, Command, GetFd, NetdevAddTap, NetdevAddUser,
        NetdevAddVhostUser, NetdevDel, QueryKvm, RemoveFd, Words,
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
            let on_kvm = match chardev {
                Some(_) => self.run(QueryKvm {}).await?.enabled,
                None => true,
            };
            self.effects().announce("nic.device")?;
            self.add_behind_bridge(&id, |bus| match chardev {
                Some(_) => shape::served_nic_device(&id, mac, bus, on_kvm),
                None => shape::nic_device(&id, mac, bus),
            })
            .await
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
        let added = self.client.run_with(AddFd { opaque: id.to_string() }, server).await;
        let added = self.shared.result(AddFd::NAME, added)?;
        let result = async {
            let path = format!("/proc/self/fd/{}", added.fd);
            self.effects().announce("nic.server")?;
            self.run(ChardevAdd(shape::dialled_backend(id, &path))).await.map(|_| ())
        };
        let result = result.await;
        // The connection stays without it.
        self.undo(RemoveFd { fdset_id: added.fdset_id }).await;
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
