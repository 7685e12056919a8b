//! A share: the connection to its server, the character device on it, the file system's device.

use super::Bench;
use crate::{
    Share, VmmError,
    qemu::device as shape,
    qmp::command::{ChardevAdd, ChardevRemove, CloseFd, Command, GetFd},
};

impl Bench<'_> {
    pub(super) async fn plug_share(&self, share: Share) -> Result<(), VmmError> {
        let Share { id, tag, server } = share;
        let name = shape::port_chardev(&id);
        self.effects().announce("share.descriptor")?;
        let passed = self.client.run_with(GetFd { name: name.clone() }, server).await;
        self.shared.result(GetFd::NAME, passed)?;
        let result = async {
            self.effects().announce("share.backend")?;
            self.run(ChardevAdd(shape::share_backend(&id))).await.map(|_| ())
        };
        if let Err(error) = result.await {
            self.undo(CloseFd { name }).await;
            return Err(error);
        }
        let result = async {
            self.effects().announce("share.device")?;
            self.add_behind_bridge(&id, |bus| shape::share_device(&id, &tag, bus)).await
        };
        if let Err(error) = result.await {
            self.undo(ChardevRemove { id: name }).await;
            return Err(error);
        }
        Ok(())
    }
}
