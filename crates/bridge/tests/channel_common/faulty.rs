//! A port with the faults of QEMU's virtio-serial, as they were measured on QEMU 7.2.
//!
//! - One client at a time; the next waits in the backlog and its bytes follow without a mark.
//! - What a client sent and the guest has not read stays for the guest, up to 512 KiB; the tail of
//!   it is torn off anywhere.
//! - What the guest sent and the client has not read dies with the client, torn off anywhere.
//! - A client that dies costs a descriptor; after 128 the way to the host is dead until the driver is
//!   bound anew.

use coracle_bridge::channel::{PortDevice, SharedArea};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What the port holds for a guest that does not read: 128 buffers of a page.
const HELD: usize = 128 * 4096;
/// Deaths of clients after which the port is dead.
const DESCRIPTORS: u32 = 128;

#[derive(Default)]
pub struct Faults {
    pub deaths: AtomicU32,
    pub rebinds: AtomicU32,
    since_bind: AtomicU32,
}

pub struct FaultyPort {
    guest: StdUnixStream,
    faults: Arc<Faults>,
    area: Option<SharedArea>,
    relay: JoinHandle<()>,
}

impl FaultyPort {
    pub fn new(listener: UnixListener, faults: Arc<Faults>) -> Self {
        let (guest, qemu) = StdUnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        qemu.set_nonblocking(true).unwrap();
        let port = Relay {
            guest: UnixStream::from_std(qemu).unwrap(),
            faults: Arc::clone(&faults),
            inward: VecDeque::new(),
            outward: VecDeque::new(),
            random: 88_172_645_463_325_252,
        };
        FaultyPort { guest, faults, area: None, relay: tokio::spawn(port.run(listener)) }
    }

    /// The same beside memory in common with the host, which has no faults.
    pub fn with_area(mut self, area: SharedArea) -> Self {
        self.area = Some(area);
        self
    }
}

impl Drop for FaultyPort {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

impl PortDevice for FaultyPort {
    fn open(&mut self) -> io::Result<OwnedFd> {
        Ok(self.guest.try_clone()?.into())
    }

    fn rebind(&mut self) -> io::Result<()> {
        self.faults.rebinds.fetch_add(1, Ordering::Relaxed);
        self.faults.since_bind.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn area(&self) -> Option<SharedArea> {
        self.area.clone()
    }
}

struct Relay {
    guest: UnixStream,
    faults: Arc<Faults>,
    inward: VecDeque<u8>,
    outward: VecDeque<u8>,
    random: u64,
}

impl Relay {
    async fn run(mut self, listener: UnixListener) {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            self.serve(&client).await;
            self.faults.deaths.fetch_add(1, Ordering::Relaxed);
            self.faults.since_bind.fetch_add(1, Ordering::Relaxed);
            let torn = self.random(self.inward.len() + 1);
            self.inward.truncate(self.inward.len() - torn.min(64 * 1024));
            self.outward.clear();
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below as u64).unwrap()
    }

    /// Until the client is gone.
    async fn serve(&mut self, client: &UnixStream) {
        let mut buffer = vec![0; 4096];
        loop {
            let alive = self.faults.since_bind.load(Ordering::Relaxed) < DESCRIPTORS;
            tokio::select! {
                ready = client.readable(), if self.inward.len() < HELD => {
                    ready.unwrap();
                    match client.try_read(&mut buffer) {
                        Ok(0) => return,
                        Ok(n) => self.inward.extend(&buffer[..n]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
                ready = self.guest.writable(), if !self.inward.is_empty() => {
                    ready.unwrap();
                    if let Ok(n) = self.guest.try_write(self.inward.as_slices().0) {
                        self.inward.drain(..n);
                    }
                }
                ready = self.guest.readable(), if self.outward.is_empty() && alive => {
                    ready.unwrap();
                    if let Ok(n) = self.guest.try_read(&mut buffer) {
                        assert!(n > 0, "the guest's end outlives its clients");
                        self.outward.extend(&buffer[..n]);
                    }
                }
                ready = client.writable(), if !self.outward.is_empty() => {
                    ready.unwrap();
                    match client.try_write(self.outward.as_slices().0) {
                        Ok(n) => drop(self.outward.drain(..n)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }
}
