//! The channel over one connection that a daemon makes to the guest: a keeper, a guest's end, and what
//! stands in for the daemon and for QEMU between them.
#![allow(clippy::unwrap_used)]

use coracle_bridge::channel::keeper::{self, Keeper, VSOCK_SOCKET, vsock_folder};
use coracle_bridge::channel::{ChannelDir, GuestChannel, PortDevice, VSOCK_PORT};
use coracle_bridge::port;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const ECHO: u32 = 1000;
const HOST: u32 = 2000;

/// The guest's port: one connection after the other, and the newest counts.
struct DialledPort {
    connections: mpsc::UnboundedReceiver<OwnedFd>,
    next: Option<OwnedFd>,
}

impl PortDevice for DialledPort {
    fn open(&mut self) -> io::Result<OwnedFd> {
        while let Ok(newer) = self.connections.try_recv() {
            self.next = Some(newer);
        }
        self.next.take().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rebind(&mut self) -> io::Result<()> {
        panic!("a connection does not wear out");
    }

    fn wears_out(&self) -> bool {
        false
    }

    fn superseded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            match self.connections.recv().await {
                Some(connection) => self.next = Some(connection),
                None => std::future::pending().await,
            }
        })
    }
}

/// Carries bytes as `vhost-device-vsock` does; of the host's end it tells the guest nothing.
async fn daemon(listener: UnixListener, guest: mpsc::UnboundedSender<OwnedFd>) {
    let mut relays = JoinSet::new();
    loop {
        let (mut host, _) = listener.accept().await.unwrap();
        let dial = format!("CONNECT {VSOCK_PORT}\n");
        let mut line = vec![0; dial.len()];
        host.read_exact(&mut line).await.unwrap();
        assert_eq!(line, dial.as_bytes());
        let (ours, its) = std::os::unix::net::UnixStream::pair().unwrap();
        for end in [&ours, &its] {
            end.set_nonblocking(true).unwrap();
        }
        guest.send(its.into()).unwrap();
        host.write_all(format!("OK {VSOCK_PORT}\n").as_bytes()).await.unwrap();
        let mut ours = UnixStream::from_std(ours).unwrap();
        relays.spawn(async move {
            // Its end may be one of the host or one of the guest, which neither hears of here.
            let _ = tokio::io::copy_bidirectional(&mut host, &mut ours).await;
            std::future::pending::<()>().await;
        });
    }
}

/// Holds what connects to QEMU's socket.
async fn qemu(listener: UnixListener) {
    let mut held = Vec::new();
    loop {
        held.push(listener.accept().await.unwrap());
    }
}

struct Rig {
    folder: tempfile::TempDir,
    guest: GuestChannel,
    daemon: JoinHandle<()>,
    qemu: JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.daemon.abort();
        self.qemu.abort();
    }
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = ChannelDir::new(folder.path());
        std::fs::create_dir(vsock_folder(&dir)).unwrap();
        let (sender, connections) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(vsock_folder(&dir).join(VSOCK_SOCKET)).unwrap();
        let daemon = tokio::spawn(daemon(listener, sender));
        let qemu =
            tokio::spawn(qemu(UnixListener::bind(folder.path().join("streams.sock")).unwrap()));
        let port = DialledPort { connections, next: None };
        let guest = GuestChannel::open_one_on(Box::new(port), &Handle::current());
        let serving = guest.clone();
        tokio::spawn(async move {
            while let Ok((_, stream)) = serving.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(stream);
                    tokio::io::copy(&mut from, &mut to).await?;
                    to.shutdown().await
                });
            }
        });
        Self { folder, guest, daemon, qemu }
    }

    fn dir(&self) -> ChannelDir {
        ChannelDir::new(self.folder.path())
    }

    async fn keeper(&self) -> JoinHandle<Result<(), keeper::KeeperError>> {
        self.keeper_of(false).await
    }

    async fn keeper_of(&self, guest_boots: bool) -> JoinHandle<Result<(), keeper::KeeperError>> {
        let config = Keeper::new(self.dir()).over_vsock(guest_boots);
        let keeper = tokio::spawn(keeper::run(config, std::future::pending()));
        keeper::wait_ready(&self.dir(), PATIENCE).await.unwrap();
        keeper
    }

    /// Sends bytes to a port of the guest, ends, and has them all back.
    async fn echo(&self, port: u32) {
        let mut stream = self.dir().dial(port).await.unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut from, mut to) = stream.split();
        let mut back = Vec::new();
        let sending = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        tokio::join!(sending, async { from.read_to_end(&mut back).await.unwrap() });
        assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    }
}

#[tokio::test]
async fn one_connection_carries_bridge_and_streams_both_ways_until_qemu_is_gone() {
    let rig = Rig::new();
    let keeper = rig.keeper().await;
    timeout(PATIENCE, async {
        tokio::join!(rig.echo(ECHO), rig.echo(port::BRIDGE), rig.echo(ECHO));
        let listener = rig.dir().listen(HOST).unwrap();
        let (dialled, accepted) = tokio::join!(rig.guest.dial(HOST), listener.accept());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        accepted.write_all(b"host").await.unwrap();
        let mut word = [0; 4];
        dialled.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"host");
    })
    .await
    .unwrap();
    // The daemon would never tell.
    rig.qemu.abort();
    timeout(PATIENCE, keeper).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_hundred_keepers_are_served_though_the_guest_hears_of_no_ones_end() {
    let rig = Rig::new();
    for _ in 0..100 {
        let keeper = rig.keeper().await;
        timeout(PATIENCE, rig.echo(ECHO)).await.unwrap();
        keeper.abort();
        let _ = keeper.await;
    }
}

#[tokio::test]
async fn a_guest_that_boots_is_not_dialled_before_it_knocks() {
    let mut rig = Rig::new();
    rig.qemu.abort();
    let socket = rig.folder.path().join("streams.sock");
    std::fs::remove_file(&socket).unwrap();
    let port = UnixListener::bind(&socket).unwrap();
    let keeper = rig.keeper_of(true).await;
    let (mut guest, _) = timeout(PATIENCE, port.accept()).await.unwrap().unwrap();
    let early = tokio::select! {
        () = rig.echo(ECHO) => true,
        () = tokio::time::sleep(Duration::from_millis(300)) => false,
    };
    assert!(!early, "it was dialled");
    guest.write_all(b"!").await.unwrap();
    rig.qemu = tokio::spawn(qemu(port));
    timeout(PATIENCE, rig.echo(ECHO)).await.unwrap();
    keeper.abort();
}
