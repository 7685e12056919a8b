//! A channel without a VM: a keeper and a guest's end over sockets that stand in for QEMU's ports.
#![allow(dead_code, unreachable_pub)]

use coracle_bridge::channel::{ChannelDir, GuestChannel, SocketPort, keeper};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Channel {
    pub dir: ChannelDir,
    pub guest: GuestChannel,
    pub keeper: JoinHandle<Result<(), keeper::KeeperError>>,
    pub folder: TempDir,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

pub fn socket_port(path: &Path) -> Box<SocketPort> {
    Box::new(SocketPort::new(UnixListener::bind(path).unwrap()).unwrap())
}

pub async fn start() -> Channel {
    let folder = tempfile::tempdir().unwrap();
    let control = socket_port(&folder.path().join("control.sock"));
    let streams = socket_port(&folder.path().join("streams.sock"));
    let guest = GuestChannel::open(control, streams);
    let dir = ChannelDir::new(folder.path());
    let keeper = start_keeper(&dir).await;
    Channel { dir, guest, keeper, folder }
}

pub async fn start_keeper(dir: &ChannelDir) -> JoinHandle<Result<(), keeper::KeeperError>> {
    let config = keeper::Keeper::new(dir.clone());
    let keeper = tokio::spawn(keeper::run(config, std::future::pending()));
    keeper::wait_ready(dir, PATIENCE).await.unwrap();
    keeper
}

/// Bytes that differ everywhere, the same for the same seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
