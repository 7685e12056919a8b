//! Where the guest finds its end of a port.
//!
//! [`VirtioPort`] is the real one: `/dev/vportNpM`, found by the name QEMU gave the port. It can be
//! *rebound*: the kernel's driver lets go of the device and takes it again, which gives back the
//! descriptors that QEMU loses when clients die (see `mux::outflow`). [`SocketPort`] stands
//! in for it where there is no VM: it listens as QEMU does and keeps one end open for the guest while
//! clients come and go.

use super::area::{FreshSlot, GuestArea};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// The guest's end of a virtio-serial port.
pub trait PortDevice: Send + 'static {
    /// Opens it, not blocking. Only one may be open at a time.
    ///
    /// # Errors
    /// `NotFound` when the port is not there (yet); else those of the open.
    fn open(&mut self) -> io::Result<OwnedFd>;

    /// Makes the driver let go of the device and take it again. The port must be closed.
    ///
    /// # Errors
    /// Those of sysfs; `TimedOut` when the port does not come back.
    fn rebind(&mut self) -> io::Result<()>;

    /// Whether it loses something with each session, which [`rebind`](PortDevice::rebind) gives back.
    fn wears_out(&self) -> bool {
        true
    }

    /// Memory that guest and host have in common, for what is too large to go through the port.
    fn area(&self) -> Option<SharedArea> {
        None
    }

    /// Until another host is there than that of the open port, which then is of no use any more. Cancel
    /// safe. A port that all hosts share never tells.
    fn superseded(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

/// Memory that guest and host have in common, beside a port. It is looked for when it is first of use, and may
/// not be there.
#[derive(Clone, Debug)]
pub struct SharedArea(pub(super) Arc<GuestArea>);

impl SharedArea {
    /// A file of [`AREA_BYTES`](super::AREA_BYTES), where there is no VM.
    #[must_use]
    pub fn of_file(path: impl Into<PathBuf>) -> Self {
        SharedArea(GuestArea::of_file(path.into()))
    }

    /// At most so many slots of 64 KiB, to read something for the host into. There may be fewer, or none: some are
    /// kept for others.
    #[must_use]
    pub fn fresh_slots(&self, most: usize) -> Vec<FreshSlot> {
        self.0.take_fresh(most)
    }
}

/// A port of the kernel's `virtio_console` driver, by name.
#[derive(Debug)]
pub struct VirtioPort {
    name: String,
    area: Option<SharedArea>,
    sys: PathBuf,
    dev: PathBuf,
}

impl VirtioPort {
    /// How long the port may take to come back after a rebind.
    const RETURN: Duration = Duration::from_secs(2);

    /// The port that QEMU calls `name` (`-device virtserialport,name=`).
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self::beneath(name, "/sys", "/dev")
    }

    /// The same with other places for sysfs and devtmpfs.
    #[must_use]
    pub fn beneath(
        name: impl Into<String>,
        sys: impl Into<PathBuf>,
        dev: impl Into<PathBuf>,
    ) -> Self {
        VirtioPort { name: name.into(), area: None, sys: sys.into(), dev: dev.into() }
    }

    /// The same beside the memory of the VM's `ivshmem-plain` device, if it has one.
    #[must_use]
    pub fn with_area(mut self) -> Self {
        self.area = Some(SharedArea(GuestArea::of_device(self.sys.clone())));
        self
    }

    /// The port's folder in sysfs.
    fn find(&self) -> io::Result<PathBuf> {
        let missing = || {
            let text = format!("no virtio-serial port is named {}", self.name);
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let ports = fs::read_dir(self.sys.join("class/virtio-ports")).map_err(|_| missing())?;
        for port in ports {
            let path = port?.path();
            // A port that goes away meanwhile is not ours.
            let Ok(name) = fs::read_to_string(path.join("name")) else { continue };
            if name.trim_end() == self.name {
                return Ok(path);
            }
        }
        Err(missing())
    }
}

fn file_name(path: &Path) -> io::Result<&str> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl PortDevice for VirtioPort {
    fn open(&mut self) -> io::Result<OwnedFd> {
        let port = self.find()?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(rustix::fs::open(self.dev.join(file_name(&port)?), flags, Mode::empty())?)
    }

    fn rebind(&mut self) -> io::Result<()> {
        let device = fs::canonicalize(self.find()?.join("device"))?;
        let device = file_name(&device)?;
        let driver = self.sys.join("bus/virtio/drivers/virtio_console");
        fs::write(driver.join("unbind"), device)?;
        fs::write(driver.join("bind"), device)?;
        let deadline = Instant::now() + Self::RETURN;
        while self.find().is_err() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn area(&self) -> Option<SharedArea> {
        self.area.clone()
    }
}

/// A port without a VM: clients connect to a unix socket, one at a time, and the guest's end is a
/// socket that outlives them.
#[derive(Debug)]
pub struct SocketPort {
    guest: StdUnixStream,
    area: Option<SharedArea>,
    relay: JoinHandle<()>,
}

impl SocketPort {
    /// Takes over a listening socket (the place of `control.sock` or `streams.sock`).
    ///
    /// # Errors
    /// Those of making a socket pair. Must be called within a tokio runtime.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        let (guest, host) = StdUnixStream::pair()?;
        guest.set_nonblocking(true)?;
        host.set_nonblocking(true)?;
        let host = UnixStream::from_std(host)?;
        let relay = tokio::spawn(relay(listener, host));
        Ok(SocketPort { guest, area: None, relay })
    }

    /// The same beside an area.
    #[must_use]
    pub fn with_area(mut self, area: SharedArea) -> Self {
        self.area = Some(area);
        self
    }
}

impl Drop for SocketPort {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

impl PortDevice for SocketPort {
    fn open(&mut self) -> io::Result<OwnedFd> {
        Ok(self.guest.try_clone()?.into())
    }

    fn rebind(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn area(&self) -> Option<SharedArea> {
        self.area.clone()
    }
}

/// Serves one client after the other, until the guest's end closes.
async fn relay(listener: UnixListener, mut host: UnixStream) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { return };
        if serve_client(&mut client, &mut host).await.is_err() {
            return;
        }
    }
}

/// Ends well when the client leaves; what was on its way then is lost, as it is with QEMU.
async fn serve_client(client: &mut UnixStream, host: &mut UnixStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_guest, mut to_guest) = host.split();
    let inward = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => to_guest.write_all(&buffer[..n]).await?,
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = from_guest.read(&mut buffer).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if to_client.write_all(&buffer[..n]).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        end = inward => end,
        end = outward => end,
    }
}
