//! The guest's screen: VNC on a unix socket.
//!
//! QEMU would bind the socket by its path, as a user who may not write there. So the owner
//! listens, and hands every client that dials to QEMU as a connected descriptor. While a VM has
//! no owner its screen cannot be dialled; clients that are connected stay so.

use std::{convert::Infallible, future::pending, path::Path};

use tokio::net::{UnixListener, UnixStream};

use super::Shared;
use crate::{
    VmmError,
    qmp::command::{AddClient, CloseFd, Command, GetFd},
    socket,
};

/// The name of a client's descriptor on its way.
const NAME: &str = "vm.vnc";

/// Listens for clients, where the VM has a screen.
pub(crate) fn listen(path: Option<&Path>) -> Result<Option<UnixListener>, VmmError> {
    let Some(path) = path else { return Ok(None) };
    socket::listen_here(path).map(Some).map_err(|source| VmmError::Host {
        operation: "listen on",
        object: path.display().to_string(),
        source,
    })
}

/// Hands over one client after the other, for ever.
pub(super) async fn serve(shared: &Shared, listener: Option<UnixListener>) -> Infallible {
    let Some(listener) = listener else { return pending().await };
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                if let Err(error) = hand_over(shared, client).await {
                    tracing::warn!(%error, "client of the screen turned away");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "screen not served any more");
                return pending().await;
            }
        }
    }
}

async fn hand_over(shared: &Shared, client: UnixStream) -> Result<(), VmmError> {
    let control = shared.client().await?;
    let client = client.into_std().map_err(|source| VmmError::Host {
        operation: "take over",
        object: "a client of the screen".into(),
        source,
    })?;
    let name = || NAME.to_owned();
    let passed = control.run_with(GetFd { name: name() }, client.into()).await;
    shared.result(GetFd::NAME, passed)?;
    let add = AddClient { protocol: "vnc", name: name(), skipauth: true };
    let added = control.run(add).await;
    if added.is_err() {
        // The descriptor is closed by QEMU if it has taken it, and by this if not.
        let _ = control.run(CloseFd { name: name() }).await;
    }
    shared.result(AddClient::NAME, added).map(|_| ())
}
