//! What containers that exist see of the VM: mounts, and disks as block devices.
//!
//! A disk takes two steps: the container's device rules let it through, then its node is shown like
//! any other file. They are undone in reverse.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use coracle_bridge::message::{ContainerMount, CoracleDisk};
use coracle_bridge::server::ServiceError;

use super::containers::Container;
use super::modify::blocking;
use super::{Agent, errors};
use crate::container::attach;
use crate::container::devices::{self, Allowed};
use crate::container::request::Request;
use crate::process::streams;
use crate::storage::disk::{self, DiskAddress};

/// What is shown, by container and destination.
#[derive(Debug, Default)]
pub(super) struct Shown(HashMap<(String, String), Sight>);

/// One thing that is shown.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// Its mount point was made for it.
    created: bool,
    /// The disk it is.
    device: Option<Allowed>,
}

impl Shown {
    /// The disks a container may use.
    fn devices(&self, container: &str) -> Vec<Allowed> {
        let of_it = self.0.iter().filter(|((id, _), _)| id == container);
        of_it.filter_map(|(_, sight)| sight.device).collect()
    }

    /// The container is gone: another of its id begins with nothing.
    pub(super) fn forget(&mut self, container: &str) {
        self.0.retain(|(id, _), _| id != container);
    }
}

impl Agent {
    pub(super) fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn show(&self, mount: ContainerMount) -> Result<(), ServiceError> {
        let container = self.container(&mount.container_id)?;
        let (source, device) = match mount.disk {
            None => (PathBuf::from(&mount.source), None),
            Some(which) => {
                let mounter = Arc::clone(&self.mounter);
                let node = blocking(move || {
                    let found = disk::await_attached(&mounter, &address(which));
                    found.map_err(|error| errors::failed(&error))
                });
                let node = node.await?;
                let numbers = devices::numbers(&node, !mount.read_only);
                let gone = || ServiceError::failed(format!("{} is gone", node.display()));
                (node.clone(), Some(numbers.ok_or_else(gone)?))
            }
        };
        let key = (mount.container_id, mount.destination);
        if device.is_some() {
            // Known before it is allowed: whoever sets the rules sets them for all that are known.
            self.shown().0.insert(key.clone(), Sight { created: false, device });
        }
        let shown = async {
            if device.is_some() {
                self.allow(&container).await?;
            }
            let (init, target) = (container.init_handle()?, key.1.clone());
            let attached = blocking(move || {
                attach::attach(init, &source, Path::new(&target))
                    .map_err(|error| errors::failed(&error))
            });
            attached.await
        };
        match shown.await {
            Ok(created) => {
                self.shown().0.insert(key, Sight { created, device });
                Ok(())
            }
            Err(error) => {
                if device.is_some() {
                    self.shown().0.remove(&key);
                    if let Err(undo) = self.allow(&container).await {
                        tracing::warn!(error = ?undo, "a device stays allowed in a container");
                    }
                }
                Err(error)
            }
        }
    }

    /// A container that is gone has taken its mounts along.
    pub(super) async fn hide(&self, mount: ContainerMount) -> Result<(), ServiceError> {
        let key = (mount.container_id.clone(), mount.destination.clone());
        let sight = self.shown().0.remove(&key);
        let Ok(container) = self.container(&mount.container_id) else { return Ok(()) };
        if container.has_exited() {
            return Ok(());
        }
        let hidden = async {
            let init = container.init_handle()?;
            let created = sight.is_some_and(|sight| sight.created);
            let detached = blocking(move || {
                attach::detach(init, Path::new(&mount.destination), created)
                    .map_err(|error| errors::failed(&error))
            });
            detached.await?;
            match sight.and_then(|sight| sight.device) {
                Some(_) => self.allow(&container).await,
                None => Ok(()),
            }
        };
        let hidden = hidden.await;
        if let (Err(_), Some(sight)) = (&hidden, sight) {
            // It is still there, and will be removed as it was made.
            self.shown().0.insert(key, sight);
        }
        hidden
    }

    /// Lets the container use the disks it is shown, and no others. Turns are taken: the last to set
    /// the rules must be the one who knows all.
    async fn allow(&self, container: &Container) -> Result<(), ServiceError> {
        let _turn = self.devices_turn.acquire().await.map_err(ServiceError::failed)?;
        let allowed = self.shown().devices(container.id());
        let null = streams::null()?;
        let request = Request::Devices { id: container.id().to_owned(), allowed };
        let done = self.launcher.run(&request, [null.as_fd(); 3], None).await;
        done.map(drop).map_err(|error| errors::launch(&error))
    }
}

fn address(disk: CoracleDisk) -> DiskAddress {
    if disk.pci.is_empty() { DiskAddress::Serial(disk.serial) } else { DiskAddress::Pci(disk.pci) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_the_same_id_may_use_no_disk_of_the_one_before() {
        let mut shown = Shown::default();
        let device = Allowed::parse("8:16", true);
        for id in ["web", "other"] {
            let key = (id.to_owned(), "/dev/data".to_owned());
            shown.0.insert(key, Sight { created: true, device });
        }
        shown.forget("web");
        assert_eq!((shown.devices("web").len(), shown.devices("other").len()), (0, 1));
    }
}
