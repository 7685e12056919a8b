//! The folder of sockets, the keeper's life, and how a port is found.
#![allow(clippy::unwrap_used)]

mod channel_common;

use channel_common::{PATIENCE, socket_port, start};
use coracle_bridge::channel::{ChannelDir, ChannelError, PortDevice, VirtioPort, keeper};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::timeout;

#[tokio::test]
async fn a_folder_may_lie_deeper_than_a_sockets_path_may_be_long() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    let dir = ChannelDir::new(&deep);
    let listener = dir.listen(5).unwrap();
    assert!(deep.join("vsock_5").exists());
    drop(listener);
    assert!(!deep.join("vsock_5").exists());
}

#[tokio::test]
async fn a_socket_file_that_nobody_serves_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("vsock_5")).unwrap());
    let listener = ChannelDir::new(folder.path()).listen(5).unwrap();
    let path = folder.path().join("vsock_5");
    let (client, accepted) = tokio::join!(tokio::net::UnixStream::connect(path), listener.accept());
    client.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn a_port_that_is_served_cannot_be_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ChannelDir::new(folder.path());
    let _listener = dir.listen(5).unwrap();
    assert_eq!(dir.listen(5).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[tokio::test]
async fn a_listener_leaves_anothers_socket_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ChannelDir::new(folder.path());
    let first = dir.listen(5).unwrap();
    fs::remove_file(folder.path().join("vsock_5")).unwrap();
    let _second = dir.listen(5).unwrap();
    drop(first);
    assert!(folder.path().join("vsock_5").exists());
}

#[tokio::test]
async fn an_answer_that_is_none_of_ours_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
    let answers: [&[u8]; 4] = [b"HELLO\n", b"OK x\n", b"\xff\n", &[b'O'; 99]];
    for answer in answers {
        let dir = ChannelDir::new(folder.path());
        let (dialled, ()) = tokio::join!(dir.dial(3), async {
            let mut peer = listener.accept().await.unwrap().0;
            peer.write_all(answer).await.unwrap();
            let _ = peer.read(&mut [0; 64]).await;
        });
        assert!(matches!(dialled, Err(ChannelError::Answer { port: 3 })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_dial_that_is_no_dial_is_hung_up_on() {
    let channel = start().await;
    for words in ["CONNECT x\n", "GET / HTTP/1.1\n", "CONNECT 99999999999\n"] {
        let mut socket =
            tokio::net::UnixStream::connect(channel.dir.path().join("vsock")).await.unwrap();
        socket.write_all(words.as_bytes()).await.unwrap();
        let end = timeout(PATIENCE, socket.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{words:?} was answered");
    }
}

#[tokio::test]
async fn a_keeper_waits_for_a_vm_and_says_so_when_none_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = keeper::Keeper::new(ChannelDir::new(folder.path()));
    config.start = Duration::from_millis(50);
    let end = keeper::run(config, std::future::pending()).await;
    assert!(matches!(end, Err(keeper::KeeperError::NeverCame { .. })));
    assert!(!folder.path().join("vsock").exists());
}

#[tokio::test]
async fn a_keeper_ends_when_its_vm_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let ports = ["control.sock", "streams.sock"].map(|name| socket_port(&folder.path().join(name)));
    let mut config = keeper::Keeper::new(ChannelDir::new(folder.path()));
    config.gone = Duration::from_millis(100);
    let keeper = tokio::spawn(keeper::run(config, std::future::pending()));
    keeper::wait_ready(&ChannelDir::new(folder.path()), PATIENCE).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(ports);
    timeout(PATIENCE, keeper).await.expect("the keeper stays").unwrap().unwrap();
}

#[tokio::test]
async fn a_keeper_ends_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ChannelDir::new(folder.path());
    let _ports =
        ["control.sock", "streams.sock"].map(|name| socket_port(&folder.path().join(name)));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let config = keeper::Keeper::new(dir.clone());
    let keeper = tokio::spawn(keeper::run(config, async move {
        let _ = stopped.await;
    }));
    keeper::wait_ready(&dir, PATIENCE).await.unwrap();
    assert!(keeper::is_running(&dir));
    stop.send(()).unwrap();
    timeout(PATIENCE, keeper).await.unwrap().unwrap().unwrap();
    assert!(!keeper::is_running(&dir));
    assert!(!dir.path().join("vsock").exists());
}

/// A folder like /sys with one port, and one like /dev.
fn fake_kernel(name: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let port = root.path().join("sys/class/virtio-ports/vport2p1");
    let device = root.path().join("sys/devices/virtio2");
    let driver = root.path().join("sys/bus/virtio/drivers/virtio_console");
    for dir in [&port, &device, &driver, &root.path().join("dev")] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(port.join("name"), format!("{name}\n")).unwrap();
    symlink(&device, port.join("device")).unwrap();
    for file in ["bind", "unbind"] {
        fs::write(driver.join(file), "").unwrap();
    }
    fs::write(root.path().join("dev/vport2p1"), "").unwrap();
    root
}

#[test]
fn a_port_is_found_by_its_name() {
    let root = fake_kernel("coracle.streams");
    let beneath =
        |name| VirtioPort::beneath(name, root.path().join("sys"), root.path().join("dev"));
    beneath("coracle.streams").open().unwrap();
    assert_eq!(beneath("coracle.control").open().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_rebind_names_the_ports_own_device() {
    let root = fake_kernel("coracle.streams");
    let mut port =
        VirtioPort::beneath("coracle.streams", root.path().join("sys"), root.path().join("dev"));
    port.rebind().unwrap();
    let driver = root.path().join("sys/bus/virtio/drivers/virtio_console");
    for file in ["unbind", "bind"] {
        assert_eq!(fs::read_to_string(driver.join(file)).unwrap(), "virtio2");
    }
}
