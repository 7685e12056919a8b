//! The channel end to end, without a VM.
#![allow(clippy::unwrap_used)]

mod channel_common;

use channel_common::{
    Channel, PATIENCE, pattern, socket_port, start, start_keeper, start_with_area,
};
use coracle_bridge::channel::{
    AREA_BYTES, AREA_FILE, ChannelDir, ChannelError, GuestChannel, keeper,
};
use coracle_bridge::port;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

const PORT: u32 = port::STDIO_FIRST;

#[tokio::test]
async fn the_guest_dials_a_listener_of_the_host() {
    let channel = start().await;
    for port in [port::BRIDGE, PORT] {
        let listener = channel.dir.listen(port).unwrap();
        let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(port));
        let (mut host, mut guest) = (host.unwrap(), guest.unwrap());
        host.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        guest.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
        guest.write_all(b"pong").await.unwrap();
        host.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"pong");
    }
}

#[tokio::test]
async fn the_host_dials_the_guest() {
    let channel = start().await;
    let (host, guest) = tokio::join!(channel.dir.dial(7), channel.guest.accept());
    let mut host = host.unwrap();
    let (port, mut guest) = guest.unwrap();
    assert_eq!(port, 7);
    host.write_all(b"hello").await.unwrap();
    host.shutdown().await.unwrap();
    let mut text = String::new();
    guest.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    guest.write_all(b"and back").await.unwrap();
    guest.shutdown().await.unwrap();
    text.clear();
    host.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "and back");
}

#[tokio::test]
async fn a_dial_that_nobody_listens_for_is_refused() {
    let channel = start().await;
    let error = channel.guest.dial(PORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn each_direction_of_64_mib_ends_on_its_own() {
    carry_64_mib_each_way(&start().await).await;
}

#[tokio::test]
async fn each_direction_of_64_mib_through_the_area_ends_on_its_own() {
    let channel = start_with_area().await;
    let area = channel.folder.path().join(AREA_FILE);
    carry_64_mib_each_way(&channel).await;
    let carried = std::fs::read(area).unwrap();
    let (up, down) = carried.split_at(AREA_BYTES / 2);
    assert!([up, down].iter().all(|half| half.iter().any(|byte| *byte != 0)), "nothing was placed");
}

async fn carry_64_mib_each_way(channel: &Channel) {
    const LEN: usize = 64 << 20;
    let listener = channel.dir.listen(PORT).unwrap();
    let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(PORT));
    let (mut host, mut guest) = (host.unwrap(), guest.unwrap());
    let (up, down) = (pattern(1, LEN), pattern(2, LEN));
    let sender = tokio::spawn({
        let down = down.clone();
        async move {
            host.write_all(&down).await.unwrap();
            host.shutdown().await.unwrap();
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.unwrap();
            got
        }
    });
    let mut got = Vec::new();
    guest.read_to_end(&mut got).await.unwrap();
    assert!(got == down);
    guest.write_all(&up).await.unwrap();
    guest.shutdown().await.unwrap();
    assert!(sender.await.unwrap() == up);
}

#[tokio::test]
async fn the_end_of_the_keeper_resets_all_streams_and_the_next_one_serves_again() {
    let channel = start().await;
    let listener = channel.dir.listen(PORT).unwrap();
    let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(PORT));
    let (mut host, mut guest) = (host.unwrap(), guest.unwrap());
    channel.keeper.abort();
    let mut buffer = [0; 1];
    let error = timeout(PATIENCE, async {
        let next = start_keeper(&channel.dir);
        let (_next, error) = tokio::join!(next, guest.read(&mut buffer));
        error.unwrap_err()
    });
    assert_eq!(error.await.unwrap().kind(), ErrorKind::ConnectionReset);
    assert_eq!(guest.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(host.read(&mut buffer).await, Ok(0) | Err(_)));
    let (host, guest) = tokio::join!(listener.accept(), channel.guest.dial(PORT));
    let mut guest = guest.unwrap();
    guest.write_all(b"!").await.unwrap();
    host.unwrap().read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"!");
}

/// Whoever uses a channel resumes everything when the bridge breaks, and nothing as long as it stands.
#[tokio::test]
async fn a_lost_session_of_the_streams_takes_the_bridges_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name| folder.path().join(name);
    let [control, streams] = ["control.sock", "port.sock"].map(|name| socket_port(&at(name)));
    let guest = GuestChannel::open(control, streams);
    let between = UnixListener::bind(at("streams.sock")).unwrap();
    let cut = Arc::new(Notify::new());
    let relay = tokio::spawn(relay_until_cut(between, at("port.sock"), Arc::clone(&cut)));
    let dir = ChannelDir::new(folder.path());
    let keeper = start_keeper(&dir).await;
    for _ in 0..3 {
        let mut ends = Vec::new();
        for port in [port::BRIDGE, PORT] {
            let listener = dir.listen(port).unwrap();
            let (host, guest) = tokio::join!(listener.accept(), guest.dial(port));
            let (mut host, mut guest) = (host.unwrap(), guest.unwrap());
            guest.write_all(b"!").await.unwrap();
            assert_eq!(host.read_u8().await.unwrap(), b'!');
            ends.push((host, guest));
        }
        cut.notify_one();
        for (host, guest) in &mut ends {
            let end = timeout(PATIENCE, host.read(&mut [0])).await.unwrap();
            assert!(matches!(end, Ok(0) | Err(_)));
            let end = timeout(PATIENCE, guest.read(&mut [0])).await.unwrap();
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
    relay.abort();
    keeper.abort();
}

/// When QEMU ends, both ports close, and the guest's last words on the bridge are still to be read.
#[tokio::test]
async fn streams_that_end_and_do_not_begin_anew_leave_the_bridge_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name| folder.path().join(name);
    let [control, streams] = ["control.sock", "port.sock"].map(|name| socket_port(&at(name)));
    let guest = GuestChannel::open(control, streams);
    let between = UnixListener::bind(at("streams.sock")).unwrap();
    let cut = Arc::new(Notify::new());
    let relay = tokio::spawn(relay_until_cut(between, at("port.sock"), cut));
    let dir = ChannelDir::new(folder.path());
    let config = keeper::Keeper { gone: PATIENCE, ..keeper::Keeper::new(dir.clone()) };
    let keeper = tokio::spawn(keeper::run(config, std::future::pending()));
    keeper::wait_ready(&dir, PATIENCE).await.unwrap();
    let mut ends = Vec::new();
    for port in [port::BRIDGE, PORT] {
        let listener = dir.listen(port).unwrap();
        let (host, guest) = tokio::join!(listener.accept(), guest.dial(port));
        ends.push((host.unwrap(), guest.unwrap()));
    }
    relay.abort();
    let end = timeout(PATIENCE, ends[1].0.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    let (host, guest) = &mut ends[0];
    guest.write_all(b"last words").await.unwrap();
    let mut words = [0; 10];
    timeout(PATIENCE, host.read_exact(&mut words)).await.unwrap().unwrap();
    assert_eq!(&words, b"last words");
    keeper.abort();
}

/// Carries one client after the other to a port, each until told to cut it off.
async fn relay_until_cut(listener: UnixListener, port: PathBuf, cut: Arc<Notify>) {
    loop {
        let mut client = listener.accept().await.unwrap().0;
        let mut port = UnixStream::connect(&port).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut port) => {}
            () = cut.notified() => {}
        }
    }
}

#[tokio::test]
async fn there_is_one_keeper_to_a_folder() {
    let channel = start().await;
    let second = keeper::run(keeper::Keeper::new(channel.dir.clone()), std::future::pending());
    assert!(matches!(second.await, Err(keeper::KeeperError::Busy { .. })));
}

#[tokio::test]
async fn a_dial_without_a_keeper_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = ChannelDir::new(folder.path()).dial(1).await.unwrap_err();
    assert!(matches!(error, ChannelError::Connect { .. }));
}

#[tokio::test]
async fn a_dial_that_the_guest_does_not_answer_times_out() {
    let channel = start().await;
    let limit = Duration::from_millis(50);
    let error = channel.dir.dial_within(7, limit).await.unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { port: 7, .. }));
}
