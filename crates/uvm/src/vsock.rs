//! The channel over AF_VSOCK: a `vhost-device-vsock` on the host, a device in the VM.
//!
//! ```text
//!   keeper ── vsock.d/guest.sock ── vhost-device-vsock ── (the VM's memory) ── the guest's AF_VSOCK
//!                                          └── vsock.d/vm.sock ── QEMU: the device, its rings
//! ```
//!
//! The daemon is a process of its own, confined as the VM is. It dies without anyone being told but who
//! is connected to it: the keeper, and through it the VM's owner, who loses the guest. Whoever adopts the
//! VM then takes the device out and puts another in, on a new daemon; the guest's listeners outlive
//! that. The same is done when the guest does not answer, for a daemon can live and serve nobody.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_bridge::channel::keeper::{VSOCK_SOCKET, vsock_folder};
use coracle_vmm::process::{DeviceServer, ProcessIdentity, processes_with};
use coracle_vmm::{Device, DeviceId, PciDevice, PciSource, VmmError};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, locked};
use crate::options::{ChannelBacking, default_root};
use crate::share::Sidecar;

/// Where the daemon is looked for.
const FOLDERS: [&str; 3] = ["/usr/libexec", "/usr/bin", "/usr/local/bin"];

/// Its name.
const PROGRAM: &str = "vhost-device-vsock";

/// Names another one.
const VARIABLE: &str = "CORACLE_VHOST_DEVICE_VSOCK";

/// The guest's address. Each VM has a daemon and so a space of addresses of its own.
const GUEST_CID: u32 = 3;

/// The daemon's send buffer in bytes: of those tried the fastest, and with a MiB nothing arrives.
const SEND_BUFFER: u32 = 256 << 10;

/// The daemon's socket to QEMU.
const VM_SOCKET: &str = "vm.sock";

/// What the daemon's environment says of it.
const PART: &str = "vsock";

/// How long a daemon may take until it listens: its socket is there before.
const READY_LIMIT: Duration = Duration::from_secs(5);

/// How long a guest that runs may take to answer before its daemon is thought to serve nobody; twice as
/// long each time.
const SILENCE: Duration = Duration::from_secs(3);

/// Between two attempts to connect to it.
const RETRY: Duration = Duration::from_millis(2);

/// The channel cannot be carried over AF_VSOCK.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// There is no daemon on this host.
    #[error("there is no vhost-device-vsock (looked for {})", list(looked))]
    NoProgram {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// Its folder cannot be made.
    #[error("{operation} {}", path.display())]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be run.
    #[error("run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("vhost-device-vsock ended before it was ready: {said}")]
    Ended {
        /// What it said.
        said: String,
    },
    /// It does not listen.
    #[error("vhost-device-vsock does not listen at {} after {} ms", path.display(), after.as_millis())]
    NotReady {
        /// Its socket.
        path: PathBuf,
        /// The time-out.
        after: Duration,
    },
    /// The VM does not take the device, or does not give it back.
    #[error("{operation} the device of AF_VSOCK")]
    Device {
        /// `plug in` or `take out`.
        operation: &'static str,
        /// Why not.
        #[source]
        source: VmmError,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What carries the channel of a VM over AF_VSOCK.
#[derive(Debug, Default)]
pub(crate) struct Vsock {
    /// The number of the device that is in, or was last: no number is used twice.
    number: u32,
    server: Option<Arc<Sidecar>>,
}

/// The same as it is written down.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct SavedVsock {
    number: u32,
    pub(crate) server: Option<ProcessIdentity>,
}

impl Vsock {
    pub(crate) fn save(&self) -> SavedVsock {
        SavedVsock {
            number: self.number,
            server: self.server.as_ref().map(|server| server.identity()),
        }
    }

    /// As it was written down, with the daemon if it still lives.
    pub(crate) fn restore(saved: &SavedVsock) -> Self {
        let find = |identity: &ProcessIdentity| {
            let found = Sidecar::adopt(identity);
            found.inspect_err(|error| tracing::warn!(%error, "cannot adopt a daemon")).ok()?
        };
        let server = saved.server.as_ref().and_then(find);
        Self { number: saved.number, server: server.map(Arc::new) }
    }
}

impl Machine {
    /// Whether the channel goes over AF_VSOCK and nobody carries it.
    pub(crate) fn vsock_is_dead(&self) -> bool {
        let vsock = locked(&self.vsock);
        let is_dead = |vsock: &Vsock| vsock.server.as_ref().is_none_or(|server| server.is_dead());
        vsock.as_ref().is_some_and(is_dead)
    }

    /// Starts a daemon and plugs in its device, if the channel goes over AF_VSOCK.
    pub(crate) async fn plug_vsock(&self) -> Result<()> {
        let number = match locked(&self.vsock).as_mut() {
            Some(vsock) => {
                vsock.number += 1;
                vsock.number
            }
            None => return Ok(()),
        };
        self.intend("carry the channel over AF_VSOCK").await?;
        let plugged = self.serve_vsock(number).await;
        if plugged.is_err() {
            self.stop_vsock().await;
        }
        self.note().await;
        plugged.map_err(|source| UvmError::Vsock { id: self.id.clone(), source })
    }

    /// Takes the device out, dead or not, and plugs in another.
    pub(crate) async fn renew_vsock(&self) -> Result<()> {
        let Some(number) = locked(&self.vsock).as_ref().map(|vsock| vsock.number) else {
            return Ok(());
        };
        tracing::info!(vm = self.id, "another vhost-device-vsock takes over");
        self.stop_vsock().await;
        match self.vm.unplug(&device_id(number), self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => {}
            Err(source) => {
                let source = VsockError::Device { operation: "take out", source };
                return Err(UvmError::Vsock { id: self.id.clone(), source });
            }
        }
        self.plug_vsock().await
    }

    /// Renews it whenever the guest has not answered for a while; for as long as it is polled.
    pub(crate) async fn renew_vsock_while_silent(&self) -> Infallible {
        if locked(&self.vsock).is_none() {
            return std::future::pending().await;
        }
        let mut patience = SILENCE;
        loop {
            sleep(patience).await;
            patience *= 2;
            tracing::warn!(vm = self.id, "the guest does not answer over AF_VSOCK");
            if let Err(error) = self.renew_vsock().await {
                tracing::warn!(vm = self.id, error = &error as &dyn std::error::Error, "no better");
            }
        }
    }

    /// Ends the daemon, also one of which nobody wrote down who it is.
    pub(crate) async fn stop_vsock(&self) {
        let server = match locked(&self.vsock).as_mut() {
            Some(vsock) => vsock.server.take(),
            None => return,
        };
        if let Some(server) = server {
            server.stop(self.host.cleanup_timeout).await;
        }
        for stray in processes_with(&self.part(PART)) {
            if let Ok(Some(stray)) = Sidecar::adopt(&stray) {
                stray.stop(self.host.cleanup_timeout).await;
            }
        }
        let folder = vsock_folder(&self.channel);
        for socket in [VM_SOCKET, VSOCK_SOCKET] {
            // A daemon that was killed leaves them.
            let _ = std::fs::remove_file(folder.join(socket));
        }
    }

    async fn serve_vsock(&self, number: u32) -> Result<(), VsockError> {
        let folder = vsock_folder(&self.channel);
        let opened = self.make_folder(&folder)?;
        let program = self.vsock_program()?;
        let number_of = opened.as_raw_fd();
        // The daemon needs no way to its folder but this, and a socket's path may have no more than 107
        // bytes, none of them a comma.
        let order = format!(
            "guest-cid={GUEST_CID},socket=/proc/self/fd/{number_of}/{VM_SOCKET},\
             uds-path=/proc/self/fd/{number_of}/{VSOCK_SOCKET},tx-buffer-size={SEND_BUFFER}",
        );
        let identity = self.vm.identity();
        // Nothing to be undone here: it can only be died of.
        drop(self.host.effects.announce("server.spawn"));
        let server = DeviceServer {
            program: program.clone(),
            arguments: ["--vm".into(), OsString::from(order)].into(),
            inherited: vec![opened],
            part: self.part(PART).1.into(),
            cgroup: identity.cgroup.as_deref(),
            user: self.host.user,
            die_with_owner: identity.die_with_owner,
        };
        let started = server.start().await;
        let (process, complaints) =
            started.map_err(|source| VsockError::Spawn { program, source })?;
        let server = Arc::new(Sidecar::own(process, complaints));
        if let Some(vsock) = locked(&self.vsock).as_mut() {
            vsock.server = Some(server.clone());
        }
        self.note().await;
        let connection = connect(&server, &folder.join(VM_SOCKET)).await?;
        let device = PciDevice { id: device_id(number), source: PciSource::Vsock(connection) };
        let plugged = self.vm.plug(Device::Pci(device)).await;
        plugged.map(drop).map_err(|source| VsockError::Device { operation: "plug in", source })
    }

    /// The daemon's folder, which belongs to it.
    fn make_folder(&self, path: &Path) -> Result<OwnedFd, VsockError> {
        let failed = |operation| {
            move |source: io::Error| {
                let path = path.to_owned();
                VsockError::Folder { operation, path, source }
            }
        };
        match std::fs::create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make")(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let opened = opened.map_err(|errno| failed("open")(errno.into()))?;
        rustix::fs::fchmod(&opened, Mode::RWXU)
            .map_err(|errno| failed("close off")(errno.into()))?;
        if let Some(user) = self.host.user {
            let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
            rustix::fs::fchown(&opened, uid, gid)
                .map_err(|errno| failed("hand over")(errno.into()))?;
        }
        Ok(opened)
    }

    fn vsock_program(&self) -> Result<PathBuf, VsockError> {
        if let ChannelBacking::Vsock { program: Some(given) } = &self.host.channel {
            return Ok(given.clone());
        }
        if let Some(given) = std::env::var_os(VARIABLE) {
            return Ok(given.into());
        }
        // The last is where `make setup` has it.
        let folders = FOLDERS.iter().map(PathBuf::from).chain([default_root().join("tools/bin")]);
        let looked: Vec<PathBuf> = folders.map(|folder| folder.join(PROGRAM)).collect();
        let found = looked.iter().find(|path| path.exists()).cloned();
        found.ok_or(VsockError::NoProgram { looked })
    }
}

fn device_id(number: u32) -> DeviceId {
    DeviceId::new(format!("vsock-{number}")).expect("`vsock-` and a number are a device's name")
}

/// Connects to the daemon as soon as it listens.
async fn connect(server: &Sidecar, path: &Path) -> Result<OwnedFd, VsockError> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let failed = match dial(path).await {
            Ok(connection) => return Ok(connection),
            Err(failed) => failed,
        };
        if server.is_dead() {
            return Err(VsockError::Ended { said: server.last_words() });
        }
        if Instant::now() >= deadline {
            tracing::warn!(error = %failed, "vhost-device-vsock");
            return Err(VsockError::NotReady { path: path.to_owned(), after: READY_LIMIT });
        }
        sleep(RETRY).await;
    }
}

/// A connection to a socket, however long its path.
async fn dial(path: &Path) -> io::Result<OwnedFd> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = rustix::fs::open(
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let stream = UnixStream::connect(short).await?.into_std()?;
    // As QEMU expects it.
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}
