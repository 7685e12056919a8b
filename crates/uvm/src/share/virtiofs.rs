//! virtio-fs shares: virtiofsd on the host, a device that is plugged in, a mount in the guest.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_bridge::message::{CoracleShare, MappedDirectory, Resource, Verb};
use coracle_vmm::{Device, DeviceId, Share, VmmError};

use super::private_view::{self, View};
use super::sidecar::Sidecar;
use super::{Facts, Kind, Server, ServerError, split};
use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::modify::ModifyError;
use crate::plug::to_the_end;

/// Where distributions keep virtiofsd: Debian 13 and others, Debian 12.
const PROGRAMS: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/bin/virtiofsd"];

/// Names another one.
const VARIABLE: &str = "CORACLE_VIRTIOFSD";

/// How long a server that ended may take to be seen dead.
const A_MOMENT: Duration = Duration::from_millis(500);

/// A directory or file shared by virtio-fs.
#[derive(Debug)]
pub struct VirtioFsShare {
    /// The tag of its device, never used again in its VM.
    tag: String,
    /// Where it is in the guest: the directory's mount point, or the file below it.
    pub uvm_path: String,
    mount_path: String,
    vm: UtilityVm,
    server: Arc<Server>,
}

impl VirtioFsShare {
    /// The tag of its device, by which a later owner finds it.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether virtiofsd has died: whoever touches the share in the guest waits for ever. QEMU cannot
    /// take a new one for the device, so all that is left is to end the VM.
    pub fn is_broken(&self) -> bool {
        self.server.is_dead()
    }

    /// Removes the share: the guest unmounts, the device is unplugged, the server ends.
    ///
    /// # Errors
    /// The guest cannot unmount it, or the host cannot unplug it: it can be tried again. A broken
    /// share cannot be removed, as its unmount would wait for the server: it goes with the VM.
    pub async fn release(&self) -> Result<()> {
        let machine = self.vm.machine.clone();
        let (tag, path) = (self.tag.clone(), self.mount_path.clone());
        to_the_end(async move { machine.remove_virtiofs(&tag, &path).await }, |()| async {}).await
    }
}

impl UtilityVm {
    /// Shares a directory, or a single file, of the host by virtio-fs.
    ///
    /// The VM must have been created with [`crate::options::HostOptions::share_memory`]. A read-only
    /// share is served read-only on the host, not only mounted so in the guest. Of what is mounted
    /// below the directory on the host, a read-only share shows nothing.
    ///
    /// Cancel safe: a caller that goes away leaves no share.
    ///
    /// # Errors
    /// [`UvmError::NoUvmPath`] without a path, [`UvmError::MemoryNotShared`]; virtiofsd cannot be
    /// started; the host or the guest refuses: nothing is left then.
    pub async fn add_virtiofs(
        &self,
        host_path: &str,
        uvm_path: &str,
        read_only: bool,
    ) -> Result<VirtioFsShare> {
        if uvm_path.is_empty() {
            return Err(UvmError::NoUvmPath);
        }
        if !self.machine.host.share_memory {
            return Err(UvmError::MemoryNotShared);
        }
        let (vm, host, guest) = (self.clone(), host_path.to_owned(), uvm_path.to_owned());
        let add = async move { vm.add_virtiofs_to_the_end(&host, guest, read_only).await };
        to_the_end(add, |share: VirtioFsShare| async move {
            if let Err(error) = share.release().await {
                tracing::error!(%error, "a share nobody wants stays");
            }
        })
        .await
    }

    async fn add_virtiofs_to_the_end(
        self,
        host_path: &str,
        mount_path: String,
        read_only: bool,
    ) -> Result<VirtioFsShare> {
        let machine = &self.machine;
        machine.running_guest("add a virtio-fs share")?;
        let number = {
            let mut shares = locked(&machine.shares);
            shares.virtiofs += 1;
            shares.virtiofs
        };
        let tag = format!("share-{number}");
        let failed = |source| UvmError::Share { path: host_path.into(), source };
        let (folder, file) = split(Path::new(host_path)).map_err(failed)?;
        let view = match (file.clone(), read_only) {
            (None, false) => View::Plain(folder),
            (None, true) => View::ReadOnly(folder),
            (Some(name), read_only) => View::File { folder, name, read_only },
        };
        let uvm_path = match file {
            Some(name) => format!("{mount_path}/{}", name.to_string_lossy()),
            None => mount_path.clone(),
        };
        let facts = Facts {
            kind: Kind::VirtioFs { tag: tag.clone() },
            uvm_path: uvm_path.clone(),
            mount_path: mount_path.clone(),
            server: None,
            is_underway: true,
            is_cut: false,
        };
        locked(&machine.shares).arrive(&tag, facts);
        let made = machine.make_virtiofs(&tag, host_path, &mount_path, view, read_only).await;
        match &made {
            Ok(_) => locked(&machine.shares).mark(&tag, false),
            Err(_) => machine.stop_server(&tag).await,
        }
        machine.note().await;
        Ok(VirtioFsShare { tag, uvm_path, mount_path, server: made?, vm: self })
    }

    /// The handle of a virtio-fs share that is there, by the tag of its device: for who has adopted
    /// the VM.
    pub fn virtiofs_share(&self, tag: &str) -> Option<VirtioFsShare> {
        let shares = locked(&self.machine.shares);
        let there = shares.there.get(tag)?;
        Some(VirtioFsShare {
            tag: tag.to_owned(),
            uvm_path: there.facts.uvm_path.clone(),
            mount_path: there.facts.mount_path.clone(),
            vm: self.clone(),
            server: there.server.clone()?,
        })
    }
}

impl Machine {
    /// Starts the server, plugs the device in, has the guest mount it. On failure the device is out
    /// again, and the server is the caller's to stop.
    async fn make_virtiofs(
        &self,
        tag: &str,
        host_path: &str,
        mount_path: &str,
        view: View,
        read_only: bool,
    ) -> Result<Arc<Server>> {
        self.intend("add a virtio-fs share").await?;
        let failed = |source| UvmError::Share { path: host_path.into(), source };
        let (sidecar, server) = self.serve_virtiofs(tag, view).await.map_err(failed)?;
        let sidecar = Arc::new(Server::Process(sidecar));
        locked(&self.shares).serve(tag, sidecar.clone());
        let device = Device::Share(Share { id: device_id(tag), tag: tag.to_owned(), server });
        let refused = |source| {
            let operation = "failed to add virtio-fs share";
            UvmError::Modify { operation, object: host_path.to_owned(), source }
        };
        if let Err(source) = self.vm.plug(device).await {
            // A server ends when its connection does, whyever that is; only what QEMU has no better
            // reason for is the server's doing.
            let said = match source {
                VmmError::Full { .. } => None,
                _ => sidecar.last_words_if_dead(A_MOMENT).await,
            };
            return Err(match said {
                Some(said) => failed(ServerError::Ended { said }),
                None => refused(ModifyError::Adding(source)),
            });
        }
        let mount = directory(tag, mount_path, read_only);
        if let Err(source) = self.ask_guest(Verb::Add, mount).await {
            self.unplug_share(tag).await.unwrap_or_else(|error| {
                tracing::error!(tag, %error, "a refused share stays plugged in");
            });
            return Err(refused(source));
        }
        Ok(sidecar)
    }
}

pub(super) fn directory(tag: &str, path: &str, read_only: bool) -> Resource {
    Resource::MappedDirectory(MappedDirectory {
        mount_path: path.to_owned(),
        share_name: tag.to_owned(),
        read_only,
        coracle: Some(CoracleShare { tag: tag.to_owned() }),
        ..MappedDirectory::default()
    })
}

pub(super) fn device_id(tag: &str) -> DeviceId {
    DeviceId::new(tag).expect("`share-` and a number are a device's name")
}

impl Machine {
    async fn remove_virtiofs(&self, tag: &str, path: &str) -> Result<()> {
        self.running_guest("remove a virtio-fs share")?;
        let server = locked(&self.shares).server(tag).ok_or(UvmError::NotAttached)?;
        let failed = |source| {
            let operation = "failed to remove virtio-fs share";
            UvmError::Modify { operation, object: path.to_owned(), source }
        };
        if server.is_dead() {
            return Err(UvmError::ShareBroken { path: path.to_owned() });
        }
        locked(&self.shares).mark(tag, true);
        let removed = async {
            self.intend("remove a virtio-fs share").await?;
            self.ask_guest(Verb::Remove, directory(tag, path, false)).await.map_err(failed)?;
            self.unplug_share(tag).await.map_err(|error| failed(ModifyError::Removing(error)))
        };
        let removed = removed.await;
        match removed {
            Ok(()) => self.stop_server(tag).await,
            Err(_) => locked(&self.shares).mark(tag, false),
        }
        self.note().await;
        removed
    }

    async fn unplug_share(&self, tag: &str) -> Result<(), VmmError> {
        match self.vm.unplug(&device_id(tag), self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Starts virtiofsd and connects to it: it serves this one connection and ends with it. The socket
    /// is bound here and handed over, so that the connection can be made at once; its file is gone
    /// when this returns.
    async fn serve_virtiofs(
        &self,
        tag: &str,
        view: View,
    ) -> Result<(Sidecar, OwnedFd), ServerError> {
        let options = &self.host.virtiofs;
        let program = match &options.program {
            Some(given) => given.clone(),
            None => program()?,
        };
        let folder = self.channel.path();
        let socket = folder.join(format!("{tag}.sock"));
        let failed = |operation| {
            move |source| ServerError::Socket { operation, path: socket.clone(), source }
        };
        let opened = File::open(folder).map_err(failed.clone()("open"))?;
        // A socket's path may have no more than 107 bytes, and a folder's may.
        let path = format!("/proc/self/fd/{}/{tag}.sock", opened.as_raw_fd());
        let listener = UnixListener::bind(&path).map_err(failed.clone()("listen on"))?;
        let stream = UnixStream::connect(&path).map_err(failed("connect to"));
        // Nobody else shall connect.
        let _ = std::fs::remove_file(&path);
        let stream = stream?;
        let mut command = tokio::process::Command::new(&program);
        self.make_part(&mut command, tag);
        let spawned = private_view::spawn(command, options, folder, tag, listener, view).await?;
        let sidecar = Sidecar::watch(spawned.0, spawned.1).map_err(|source| {
            ServerError::Spawn { command: program.display().to_string(), source }
        })?;
        Ok((sidecar, stream.into()))
    }
}

/// The server to use.
fn program() -> Result<PathBuf, ServerError> {
    if let Some(given) = std::env::var_os(VARIABLE) {
        return Ok(given.into());
    }
    let found = PROGRAMS.iter().map(Path::new).find(|path| path.exists());
    found
        .map(Path::to_owned)
        .ok_or_else(|| ServerError::NoProgram { looked: PROGRAMS.map(str::to_owned).to_vec() })
}
