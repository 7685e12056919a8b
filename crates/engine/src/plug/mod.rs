//! Things that are plugged into a sandbox and seen in its containers.
//!
//! ```text
//!   add:    reserve a line in the table ─► plug into the VM ─► show in every running container
//!   remove: hide in every container ─► take out of the VM ─► forget the line
//! ```
//!
//! What is plugged into the VM lies at a path of its own there; containers see it at the destination
//! the user chose, those that start later as a mount of their specification, those that run already
//! by a mount carried into them.

mod adopt;
mod attach;
mod spec;
mod table;

use std::sync::{Arc, Mutex, PoisonError};

use coracle_uvm::{UtilityVm, UvmError};

use crate::error::Error;
use crate::ledger::Ledger;
use crate::record::SandboxRecord;
use attach::Handle;
use table::{Refusal, Table};

pub use spec::{Kind, PlugSpec, Plugged, ShareType};
pub use table::SavedPlug;

/// What is plugged into one sandbox.
#[derive(Debug, Clone)]
pub struct Plugs {
    vm: UtilityVm,
    ledger: Option<Ledger>,
    table: Arc<Mutex<Table<Handle>>>,
    /// The containers that run and see what is plugged in.
    containers: Arc<Mutex<Vec<String>>>,
}

impl Plugs {
    pub(crate) fn new(vm: UtilityVm, ledger: Option<Ledger>) -> Self {
        Self { vm, ledger, table: Arc::default(), containers: Arc::default() }
    }

    /// Writes down what is plugged in and what is on its way.
    async fn write_down(&self) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let table = self.table.clone();
        let saved = move |record: &mut SandboxRecord| {
            let table = table.lock().unwrap_or_else(PoisonError::into_inner);
            record.plugs = table.save(Handle::id);
        };
        ledger.update(saved).await
    }

    /// The same when it has happened already.
    async fn note(&self) {
        if let Err(error) = self.write_down().await {
            tracing::error!(%error, "cannot write down what is plugged in");
        }
    }

    /// Plugs something in and shows it in all running containers. Undone if any step fails.
    ///
    /// # Errors
    /// The thing cannot be had, or something is at its destination already.
    pub async fn add(&self, spec: PlugSpec) -> Result<Plugged, Error> {
        check(&spec)?;
        let spec = PlugSpec { read_only: spec.read_only || spec.kind == Kind::Pmem, ..spec };
        let number = self.locked().reserve(&spec).map_err(|refusal| refused(&spec, refusal))?;
        // On a task of its own: a client that hangs up half-way must not leave half of it.
        let plugs = self.clone();
        let done = tokio::spawn(async move { plugs.add_reserved(number, spec).await });
        done.await.unwrap_or(Err(Error::Interrupted))
    }

    async fn add_reserved(&self, number: u64, spec: PlugSpec) -> Result<Plugged, Error> {
        let result = async {
            self.write_down().await?;
            self.plug_and_show(number, &spec).await
        };
        let result = match result.await {
            Ok((plugged, handle)) => {
                self.locked().fill(number, plugged.clone(), handle);
                Ok(plugged)
            }
            Err(error) => {
                self.locked().forget(number);
                Err(error)
            }
        };
        self.note().await;
        result
    }

    async fn plug_and_show(
        &self,
        number: u64,
        spec: &PlugSpec,
    ) -> Result<(Plugged, Handle), Error> {
        let failed = |source| plug_error("plug in", spec, source);
        let (handle, place) = attach::attach(&self.vm, number, spec).await.map_err(failed)?;
        if let Some(destination) = &spec.destination {
            for (n, container) in self.running().iter().enumerate() {
                let shown = self.show(container, spec, &place.guest_path, destination).await;
                let Err(source) = shown else { continue };
                for container in &self.running()[..n] {
                    self.hide_quietly(container, destination).await;
                }
                if let Err((_, error)) = handle.detach(&self.vm).await {
                    tracing::error!(source = spec.source, %error, "cannot undo a plug");
                }
                return Err(plug_error("show in the container", spec, source));
            }
        }
        let plugged = Plugged {
            spec: spec.clone(),
            guest_path: place.guest_path,
            slot: place.slot,
            state: "ok".to_owned(),
        };
        Ok((plugged, handle))
    }

    /// Takes something out, by its destination or its source.
    ///
    /// # Errors
    /// Nothing answers to the key, or several things do; the guest does not let go: it can be tried
    /// again.
    pub async fn remove(&self, kind: Kind, key: &str) -> Result<Plugged, Error> {
        let spec = PlugSpec::new(kind, key);
        let (number, plugged, handle) =
            self.locked().take(kind, key).map_err(|refusal| refused(&spec, refusal))?;
        let plugs = self.clone();
        let done = tokio::spawn(async move {
            let outcome = match plugs.write_down().await {
                Ok(()) => plugs.hide_and_unplug(&plugged, handle).await,
                Err(error) => Err((handle, error, false)),
            };
            let outcome = match outcome {
                Ok(()) => {
                    plugs.locked().forget(number);
                    Ok(plugged)
                }
                Err((handle, error, is_leaving)) => {
                    plugs.locked().put_back(number, handle, is_leaving);
                    Err(error)
                }
            };
            plugs.note().await;
            outcome
        });
        done.await.unwrap_or(Err(Error::Interrupted))
    }

    /// On failure, says also whether it is half out.
    async fn hide_and_unplug(
        &self,
        plugged: &Plugged,
        handle: Handle,
    ) -> Result<(), (Handle, Error, bool)> {
        let containers = self.running();
        if let Some(destination) = &plugged.spec.destination {
            for (n, container) in containers.iter().enumerate() {
                if let Err(source) = self.vm.hide_in_container(container, destination).await {
                    let error = plug_error("hide in the container", &plugged.spec, source);
                    // This one sees it still: shown again, it would see it twice.
                    let is_seen = self.show_again(plugged, &containers[..n]).await;
                    return Err((handle, error, !is_seen));
                }
            }
        }
        let detached = handle.detach(&self.vm).await;
        let Err((handle, source)) = detached else { return Ok(()) };
        // The guest may have let go of it already.
        let is_seen = self.show_again(plugged, &containers).await;
        Err((handle, plug_error("take out", &plugged.spec, source), !is_seen))
    }

    /// Shows containers again what could not be taken out. False if it is not there any more.
    async fn show_again(&self, plugged: &Plugged, containers: &[String]) -> bool {
        let Some(destination) = &plugged.spec.destination else { return true };
        let mut is_seen = true;
        for container in containers {
            let shown = self.show(container, &plugged.spec, &plugged.guest_path, destination).await;
            if let Err(error) = shown {
                tracing::error!(container, destination, %error, "cannot show it again");
                is_seen = false;
            }
        }
        is_seen
    }

    async fn show(
        &self,
        container: &str,
        spec: &PlugSpec,
        guest_path: &str,
        destination: &str,
    ) -> Result<(), UvmError> {
        if spec.is_block_device() {
            let (disk, read_only) = (&spec.source, spec.read_only);
            return self.vm.show_disk_in_container(container, disk, destination, read_only).await;
        }
        self.vm.show_in_container(container, guest_path, destination).await
    }

    /// Shows a container that is about to start the disks it shall see as block devices.
    pub(crate) async fn show_disks(&self, container: &str) -> Result<(), Error> {
        for plugged in self.list().into_iter().filter(|there| there.spec.is_block_device()) {
            let destination = plugged.spec.destination.as_deref().unwrap_or_default();
            let shown = self.show(container, &plugged.spec, "", destination).await;
            shown.map_err(|source| plug_error("show in the container", &plugged.spec, source))?;
        }
        Ok(())
    }

    async fn hide_quietly(&self, container: &str, destination: &str) {
        if let Err(error) = self.vm.hide_in_container(container, destination).await {
            tracing::error!(container, destination, %error, "cannot undo a mount in a container");
        }
    }

    /// Everything that is plugged in.
    pub fn list(&self) -> Vec<Plugged> {
        self.locked().list(Handle::state)
    }

    /// Where in the VM things are that a new container shall see, and where it sees them.
    pub(crate) fn mounts(&self) -> Vec<(String, String, bool)> {
        let seen = |plugged: Plugged| {
            let read_only = plugged.spec.read_only;
            if plugged.spec.is_block_device() || plugged.state == table::LEAVING {
                return None;
            }
            Some((plugged.guest_path, plugged.spec.destination?, read_only))
        };
        self.list().into_iter().filter_map(seen).collect()
    }

    /// From now on the container sees what comes and goes.
    pub(crate) fn container_runs(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// It has ended, and its mounts with it.
    pub(crate) fn container_ended(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).retain(|c| c != id);
    }

    fn running(&self) -> Vec<String> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Table<Handle>> {
        // Each change of the table is one call.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses by name what cannot work.
fn check(spec: &PlugSpec) -> Result<(), Error> {
    let bad =
        |why: &str| Err(Error::BadPlug { source_path: spec.source.clone(), why: why.to_owned() });
    match (&spec.destination, spec.kind) {
        (Some(path), _) if !path.starts_with('/') || path == "/" => {
            return bad("its destination is not an absolute path below /");
        }
        (Some(path), _) if path.split('/').any(|part| part == "..") => {
            return bad("its destination has `..` in it");
        }
        (None, Kind::Share | Kind::Pipe | Kind::Pmem) => return bad("it needs a destination"),
        (Some(_), Kind::Device) if !spec.source.starts_with(spec::VHOST_USER_DISK) => {
            return bad("only a disk (vhost-user-blk:SOCKET) has a destination");
        }
        (Some(_) | None, _) => {}
    }
    if spec.kind != Kind::Device && !spec.source.starts_with('/') {
        return bad("its source is not an absolute path");
    }
    Ok(())
}

fn refused(spec: &PlugSpec, refusal: Refusal) -> Error {
    let (kind, key) = (spec.kind, spec.source.clone());
    match refusal {
        Refusal::Taken(holder) => Error::DestinationTaken {
            destination: spec.destination.clone().unwrap_or_default(),
            holder,
        },
        Refusal::Unknown => Error::NotPlugged { kind, key },
        Refusal::Ambiguous(names) => Error::AmbiguousPlug { kind, key, names },
        Refusal::Busy => Error::PlugBusy { kind, key },
    }
}

fn plug_error(what: &'static str, spec: &PlugSpec, source: UvmError) -> Error {
    let (kind, path) = (spec.kind, spec.source.clone());
    Error::Plug { what, kind, path, source: Box::new(source) }
}
