//! A share: the connection to its server, the character device on it, the file system's device.

use super::Bench;
use crate::{Share, VmmError, qemu::device as shape, qmp::command::ChardevRemove};

impl Bench<'_> {
    pub(super) async fn plug_share(&self, share: Share) -> Result<(), VmmError> {
        let Share { id, tag, server } = share;
        self.connect_server(&id, server).await?;
        let result = async {
            self.effects().announce("share.device")?;
            self.add_behind_bridge(&id, |bus| shape::share_device(&id, &tag, bus)).await
        };
        if let Err(error) = result.await {
            self.undo(ChardevRemove { id: shape::port_chardev(&id) }).await;
            return Err(error);
        }
        Ok(())
    }
}
