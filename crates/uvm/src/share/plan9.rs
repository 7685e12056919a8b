//! 9P shares: a server of ours at a port of the channel, which the guest dials.
//!
//! Each share has a server of its own: a thread of this process, or a process of its own that
//! outlives it. The listening socket is made here and handed over, so the share's port is there
//! before the guest can dial it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_bridge::message::{MappedDirectory, Resource, Verb};
use coracle_plan9::Export;
use rustix::net::{Shutdown, shutdown};
use tokio::process::Command;

use super::sidecar::Sidecar;
use super::{Facts, Kind, Server, ServerError};
use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::options::ShareServers;
use crate::plug::to_the_end;

/// The port of the first share. The seed has one server at port 564 for all of them; ours has one
/// each, so that one which dies takes no other along.
const FIRST_PORT: u32 = 0x5000_0000;

/// A directory shared by 9P (seed `Plan9Share`).
#[derive(Debug)]
pub struct Plan9Share {
    name: String,
    /// Where it is mounted in the guest.
    pub uvm_path: String,
    port: u32,
    vm: UtilityVm,
    server: Arc<Server>,
}

impl Plan9Share {
    /// Its name: a number, never used again in its VM.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its server has died, or the keeper that carried its connection: what the guest does in
    /// it fails. Remove it and add it anew.
    pub fn is_broken(&self) -> bool {
        self.server.is_dead() || locked(&self.vm.machine.shares).is_cut(&server_name(&self.name))
    }

    /// Removes the share.
    ///
    /// # Errors
    /// As [`UtilityVm::remove_plan9`].
    #[doc(alias = "Release")]
    pub async fn release(&self) -> Result<()> {
        self.vm.remove_plan9(self).await
    }
}

impl UtilityVm {
    /// The handle of a 9P share that is there, by its name: for who has adopted the VM.
    pub fn plan9_share(&self, name: &str) -> Option<Plan9Share> {
        let shares = locked(&self.machine.shares);
        let there = shares.there.get(&server_name(name))?;
        let Kind::Plan9 { port, .. } = there.facts.kind else { return None };
        Some(Plan9Share {
            name: name.to_owned(),
            uvm_path: there.facts.uvm_path.clone(),
            port,
            vm: self.clone(),
            server: there.server.clone()?,
        })
    }

    /// Shares a directory of the host by 9P.
    ///
    /// With `restrict`, only `allowed_names` exist in it. Nothing outside the directory can be
    /// reached through it. Shares are not counted: each call makes one, and mounts at one path stack.
    ///
    /// Cancel safe: a caller that goes away leaves no share.
    ///
    /// # Errors
    /// [`UvmError::NoUvmPath`] without a path; the directory cannot be served; the guest refuses:
    /// nothing is left then.
    #[doc(alias = "AddPlan9")]
    pub async fn add_plan9(
        &self,
        host_path: &str,
        uvm_path: &str,
        read_only: bool,
        restrict: bool,
        allowed_names: &[&str],
    ) -> Result<Plan9Share> {
        if uvm_path.is_empty() {
            return Err(UvmError::NoUvmPath);
        }
        let allowed = allowed_names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted {
            host_path: host_path.to_owned(),
            uvm_path: uvm_path.to_owned(),
            read_only,
            allowed: restrict.then_some(allowed),
        };
        let vm = self.clone();
        to_the_end(
            async move { vm.add_plan9_to_the_end(wanted).await },
            |share: Plan9Share| async move {
                if let Err(error) = share.release().await {
                    tracing::error!(%error, "a share nobody wants stays");
                }
            },
        )
        .await
    }

    async fn add_plan9_to_the_end(self, wanted: Wanted) -> Result<Plan9Share> {
        let machine = &self.machine;
        machine.running_guest("add a 9P share")?;
        let number = {
            let mut shares = locked(&machine.shares);
            shares.plan9 += 1;
            shares.plan9 - 1
        };
        let name = number.to_string();
        let port = FIRST_PORT + u32::try_from(number).unwrap_or(u32::MAX - FIRST_PORT);
        let key = server_name(&name);
        let facts = Facts {
            kind: Kind::Plan9 { name: name.clone(), port },
            uvm_path: wanted.uvm_path.clone(),
            mount_path: wanted.uvm_path.clone(),
            server: None,
            is_underway: true,
            is_cut: false,
        };
        locked(&machine.shares).arrive(&key, facts);
        let made = async {
            machine.intend("add a 9P share").await?;
            let failed = |source| UvmError::Share { path: wanted.host_path.clone().into(), source };
            let server = machine.serve_plan9(&wanted, port).await.map_err(failed)?;
            let server = Arc::new(server);
            locked(&machine.shares).serve(&key, server.clone());
            let mount = directory(&wanted.uvm_path, port, &name, wanted.read_only);
            machine.ask_guest(Verb::Add, mount).await.map_err(|source| {
                let operation = "failed to add plan9 share";
                UvmError::Modify { operation, object: wanted.host_path.clone(), source }
            })?;
            Ok(server)
        };
        let made: Result<Arc<Server>> = made.await;
        match &made {
            Ok(_) => locked(&machine.shares).mark(&key, false),
            Err(_) => machine.end_plan9(&name, port).await,
        }
        machine.note().await;
        let uvm_path = wanted.uvm_path.clone();
        Ok(Plan9Share { name, uvm_path, port, server: made?, vm: self })
    }

    /// Removes a share: the guest unmounts, the server is ended.
    ///
    /// # Errors
    /// The guest cannot unmount it; it can be tried again. [`UvmError::NotAttached`] when it was
    /// removed before.
    #[doc(alias = "RemovePlan9")]
    pub async fn remove_plan9(&self, share: &Plan9Share) -> Result<()> {
        let machine = self.machine.clone();
        let (name, port, path) = (share.name.clone(), share.port, share.uvm_path.clone());
        let remove = async move {
            machine.running_guest("remove a 9P share")?;
            let key = server_name(&name);
            if locked(&machine.shares).server(&key).is_none() {
                return Err(UvmError::NotAttached);
            }
            locked(&machine.shares).mark(&key, true);
            let removed = async {
                machine.intend("remove a 9P share").await?;
                let unmount = directory(&path, port, &name, false);
                machine.ask_guest(Verb::Remove, unmount).await.map_err(|source| {
                    let operation = "failed to remove plan9 share";
                    UvmError::Modify { operation, object: path.clone(), source }
                })
            };
            let removed = removed.await;
            match removed {
                Ok(()) => machine.end_plan9(&name, port).await,
                Err(_) => locked(&machine.shares).mark(&key, false),
            }
            machine.note().await;
            removed
        };
        to_the_end(remove, |()| async {}).await
    }
}

/// What a share is to be.
#[derive(Debug)]
struct Wanted {
    host_path: String,
    uvm_path: String,
    read_only: bool,
    /// If there are any, only these names exist in it.
    allowed: Option<Vec<String>>,
}

fn server_name(name: &str) -> String {
    format!("9p-{name}")
}

pub(super) fn directory(path: &str, port: u32, name: &str, read_only: bool) -> Resource {
    Resource::MappedDirectory(MappedDirectory {
        mount_path: path.to_owned(),
        port,
        share_name: name.to_owned(),
        read_only,
        coracle: None,
    })
}

impl Machine {
    /// Starts the server of a share at its port.
    async fn serve_plan9(&self, wanted: &Wanted, port: u32) -> Result<Server, ServerError> {
        let socket = self.channel.path().join(format!("vsock_{port}"));
        let listener = self.channel.bind(port).map_err(|source| ServerError::Socket {
            operation: "listen on",
            path: socket.clone(),
            source,
        })?;
        let served = match &self.host.share_servers {
            ShareServers::Task => {
                let mut export = Export::new(Path::new(&wanted.host_path))?;
                if wanted.read_only {
                    export = export.read_only();
                }
                if let Some(allowed) = &wanted.allowed {
                    export = export.only(allowed);
                }
                TaskServer::start(listener, export).map(Server::Task)
            }
            ShareServers::Process(command) => {
                // What is wrong with the directory is better said here than by a process that ends.
                Export::new(Path::new(&wanted.host_path))?;
                self.plan9_process(command, wanted, port, listener).map(Server::Process)
            }
        };
        if served.is_err() {
            // It was ours a moment ago.
            let _ = std::fs::remove_file(socket);
        }
        served
    }

    fn plan9_process(
        &self,
        command: &[String],
        wanted: &Wanted,
        port: u32,
        listener: UnixListener,
    ) -> Result<Sidecar, ServerError> {
        let spawn_failed = |source| ServerError::Spawn { command: command.join(" "), source };
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| spawn_failed(std::io::ErrorKind::InvalidInput.into()))?;
        let identity = self.vm.identity();
        let mut sidecar = Command::new(program);
        sidecar.args(arguments).arg("--vm-pid").arg(identity.pid.to_string());
        sidecar.arg("--vm-start").arg(identity.start_time.to_string());
        if wanted.read_only {
            sidecar.arg("--read-only");
        }
        if let Some(allowed) = &wanted.allowed {
            sidecar.arg("--restrict");
            for name in allowed {
                sidecar.arg("--only").arg(name);
            }
        }
        sidecar.arg("--").arg(&wanted.host_path);
        self.make_part(&mut sidecar, &server_name(&(port - FIRST_PORT).to_string()));
        sidecar.stdin(Stdio::from(OwnedFd::from(listener))).process_group(0);
        Sidecar::start(sidecar).map_err(spawn_failed)
    }

    async fn end_plan9(&self, name: &str, port: u32) {
        self.stop_server(&server_name(name)).await;
        // The port is free; nobody listens there any more.
        let _ = std::fs::remove_file(self.channel.path().join(format!("vsock_{port}")));
    }
}

/// A server as a thread of this process.
#[derive(Debug)]
pub(super) struct TaskServer {
    /// The same socket the thread waits at.
    listener: OwnedFd,
    over: Arc<AtomicBool>,
}

impl TaskServer {
    fn start(listener: UnixListener, export: Export) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Spawn { command: "a 9P server".to_owned(), source };
        let waker = OwnedFd::from(listener.try_clone().map_err(failed)?);
        let over = Arc::new(AtomicBool::new(false));
        let tell = over.clone();
        let thread = std::thread::Builder::new().name("9p-server".to_owned());
        thread
            .spawn(move || {
                if let Err(error) = coracle_plan9::serve(&listener, export) {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a 9P server ended");
                }
                tell.store(true, Ordering::Release);
            })
            .map_err(failed)?;
        Ok(Self { listener: waker, over })
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Nobody can connect any more; the thread ends. Connections end with the guest's mount.
    pub(super) fn stop(&self) {
        // A socket that is shut down makes the thread's accept fail.
        let _ = shutdown(&self.listener, Shutdown::Both);
    }
}
