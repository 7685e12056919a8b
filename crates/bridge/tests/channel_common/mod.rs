//! A channel without a VM: a keeper and a guest's end over sockets that stand in for QEMU's ports.
#![allow(dead_code, unreachable_pub)]

use coracle_bridge::channel::{
    AREA_BYTES, AREA_FILE, ChannelDir, GuestChannel, SharedArea, SocketPort, keeper,
};
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

/// The file that stands in for the memory a VM has in common with its host.
pub fn area(folder: &Path) -> SharedArea {
    let path = folder.join(AREA_FILE);
    std::fs::File::create(&path).unwrap().set_len(AREA_BYTES as u64).unwrap();
    SharedArea::of_file(path)
}

pub async fn start() -> Channel {
    start_with(|_, port| port).await
}

/// The same with an area.
pub async fn start_with_area() -> Channel {
    start_with(|folder, port| Box::new(port.with_area(area(folder)))).await
}

async fn start_with(finish: impl FnOnce(&Path, Box<SocketPort>) -> Box<SocketPort>) -> Channel {
    let folder = tempfile::tempdir().unwrap();
    let control = socket_port(&folder.path().join("control.sock"));
    let streams = finish(folder.path(), socket_port(&folder.path().join("streams.sock")));
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
