//! What is plugged into the VM, seen in containers that run.

use coracle_bridge::message::{ContainerMount, CoracleDisk, Resource, Verb};

use crate::errors::{Result, UvmError};
use crate::lifecycle::{UtilityVm, locked};

impl UtilityVm {
    /// Shows a file, folder or socket of the VM in a container that runs; the place is made if it is
    /// missing. What is mounted below the source is seen too.
    ///
    /// # Errors
    /// The VM does not run; there is no such container or source; the guest refuses. Nothing is left
    /// in the container then.
    pub async fn show_in_container(
        &self,
        container: &str,
        source: &str,
        destination: &str,
    ) -> Result<()> {
        let mount = ContainerMount {
            container_id: container.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            ..ContainerMount::default()
        };
        self.modify_mount(Verb::Add, "show in a container", mount).await
    }

    /// Shows a SCSI disk that is plugged in as a block device in a container that runs, or that is
    /// created and not started yet. The container may read it, and write to it unless `read_only`;
    /// it may use no other disk. A disk that is written to in two places at once is soon broken:
    /// that nobody else mounts it is the caller's care.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`]; otherwise as [`UtilityVm::show_in_container`].
    pub async fn show_disk_in_container(
        &self,
        container: &str,
        host_path: &str,
        destination: &str,
        read_only: bool,
    ) -> Result<()> {
        let serial = locked(&self.machine.scsi).serial_of(host_path);
        let serial = serial.ok_or(UvmError::NotAttached)?;
        let mount = ContainerMount {
            container_id: container.to_owned(),
            destination: destination.to_owned(),
            disk: Some(CoracleDisk { serial, ..CoracleDisk::default() }),
            read_only,
            ..ContainerMount::default()
        };
        self.modify_mount(Verb::Add, "show in a container", mount).await
    }

    /// Takes it out of the container again. A container that has ended needs nothing, nor does a
    /// destination where nothing is.
    ///
    /// # Errors
    /// The VM does not run; something in the container uses it: it can be tried again.
    pub async fn hide_in_container(&self, container: &str, destination: &str) -> Result<()> {
        let mount = ContainerMount {
            container_id: container.to_owned(),
            destination: destination.to_owned(),
            ..ContainerMount::default()
        };
        self.modify_mount(Verb::Remove, "hide in a container", mount).await
    }

    async fn modify_mount(
        &self,
        verb: Verb,
        operation: &'static str,
        mount: ContainerMount,
    ) -> Result<()> {
        self.machine.running_guest(operation)?;
        let object = mount.destination.clone();
        let done = self.machine.ask_guest(verb, Resource::ContainerMount(mount)).await;
        done.map_err(|source| UvmError::Modify { operation, object, source })
    }
}
