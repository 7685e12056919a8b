//! A serial port: a listening socket, the character device on it, a controller, the port.

use super::Bench;
use crate::{
    SerialPort, VmmError,
    qemu::device as shape,
    qmp::command::{ChardevAdd, ChardevRemove, CloseFd, Command, DeviceDel, GetFd},
    socket,
};

impl Bench<'_> {
    pub(super) async fn plug_port(&self, port: SerialPort) -> Result<(), VmmError> {
        let id = &port.id;
        self.effects().announce("port.socket")?;
        let listener = socket::listen(&port.socket).map_err(|source| VmmError::Host {
            operation: "listen on",
            object: port.socket.display().to_string(),
            source,
        })?;
        let result = async {
            let name = shape::port_chardev(id);
            self.effects().announce("port.descriptor")?;
            let passed = self.client.run_with(GetFd { name: name.clone() }, listener).await;
            self.shared.result(GetFd::NAME, passed)?;
            if let Err(error) = self.run(ChardevAdd(shape::port_backend(id))).await {
                self.undo(CloseFd { name }).await;
                return Err(error);
            }
            let result = self.plug_port_devices(&port).await;
            if result.is_err() {
                self.undo(ChardevRemove { id: name }).await;
            }
            result
        };
        let result = result.await;
        match result {
            Ok(()) => drop(self.shared.sockets().insert(id.clone(), port.socket.clone())),
            // It was ours a moment ago; if it is gone, so much the better.
            Err(_) => drop(std::fs::remove_file(&port.socket)),
        }
        result
    }

    async fn plug_port_devices(&self, port: &SerialPort) -> Result<(), VmmError> {
        let id = &port.id;
        self.effects().announce("port.controller")?;
        self.add_behind_bridge(id, |bus| shape::port_hub(id, Some(bus))).await?;
        let result = async {
            self.effects().announce("port.device")?;
            self.add_device(id, shape::port_device(port)).await
        };
        if let Err(error) = result.await {
            self.undo(DeviceDel { id: shape::port_hub_id(id) }).await;
            return Err(error);
        }
        Ok(())
    }
}
