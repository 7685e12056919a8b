//! A container from an image that lies in the VM to a command that runs, and back to nothing: what
//! every container goes through, the sandbox's own and the further ones.
//!
//! ```text
//!   make:   overlay ─► container ─► block devices shown
//!   clear:  container deleted ─► overlay and what was written to it ─► image taken out
//! ```

use coracle_uvm::container::Container;
use coracle_uvm::scsi::{DiskFormat, DiskKind, DiskRequest};

use super::{SCRATCH, Sandbox};
use crate::error::Error;
use crate::image::RootImage;
use crate::oci::{self, ContainerSpec, specification};
use crate::process::{self, Process};
use crate::spec::{Command, Resolved};

/// Where the guest mounts the images of further containers.
const LAYERS: &str = "/run/layers/further";

/// Whether a disk that is mounted there is a further container's image.
pub(crate) fn is_layer(guest_path: &str) -> bool {
    guest_path.strip_prefix(LAYERS).is_some_and(|rest| rest.starts_with('/'))
}

/// What a container is made of.
pub(super) struct Blueprint<'a> {
    pub(super) id: &'a str,
    /// Where its image is mounted.
    pub(super) layer: &'a str,
    /// Where what it writes goes.
    pub(super) scratch: &'a str,
    pub(super) read_only: bool,
    pub(super) command: &'a Command,
    pub(super) resolved: &'a Resolved,
}

/// The guest's folder of a container.
pub(crate) fn bundle(id: &str) -> String {
    format!("/run/gcs/c/{id}")
}

/// Where a container's image and its layer are put together.
fn root_path(id: &str) -> String {
    format!("{}/rootfs", bundle(id))
}

impl Sandbox {
    /// Lays a writable layer over the image, unless nothing is to be written, and makes the container;
    /// its command waits to be started.
    pub(super) async fn make(&self, from: &Blueprint<'_>) -> Result<Container, Error> {
        let rootfs = if from.read_only {
            from.layer.to_owned()
        } else {
            let rootfs = root_path(from.id);
            let combined =
                self.vm.combine_layers_lcow(&[from.layer], Some(from.scratch), &rootfs).await;
            combined.map_err(|source| Error::Mount {
                name: self.name.clone(),
                what: "overlay",
                source: Box::new(source),
            })?;
            rootfs
        };
        let container = ContainerSpec {
            id: from.id.to_owned(),
            args: from.resolved.args.clone(),
            env: from.resolved.env.clone(),
            cwd: from.resolved.cwd.clone(),
            user: from.resolved.user.clone(),
            terminal: from.command.terminal.is_some(),
            hostname: from.command.hostname.clone().unwrap_or_else(|| self.name.clone()),
            rootfs: rootfs.into(),
            read_only: from.read_only,
            network: self.networks.namespace().to_owned(),
            shm_bytes: self.shm_bytes,
            mounts: self.plugs.mounts(),
        };
        let spec = specification(&container).map_err(|source| self.indescribable(source))?;
        let program = &from.resolved.args[0];
        let made = process::create(&self.vm, from.id, &bundle(from.id), &spec, program).await?;
        self.plugs.show_disks(from.id).await?;
        Ok(made)
    }

    /// Where what a container writes goes: a disk of the sandbox's, or the VM's memory.
    pub(super) fn scratch_of(&self, id: &str) -> String {
        match (self.has_scratch_disk, id == self.name) {
            (true, true) => SCRATCH.to_owned(),
            (true, false) => format!("{SCRATCH}/further/{id}"),
            // Below /run is a tmpfs.
            (false, _) => format!("{}/scratch", bundle(id)),
        }
    }

    /// Puts a further container's image into the VM, makes the container and starts its command.
    /// What is there when it fails, [`Sandbox::clear`] takes away.
    ///
    /// # Errors
    /// The VM has no room for the image; the container cannot be made or the command not be started.
    pub(crate) async fn start_further(
        &self,
        id: &str,
        image: &RootImage,
        read_only: bool,
        command: &Command,
        resolved: &Resolved,
    ) -> Result<(Container, Process), Error> {
        let layer = format!("{LAYERS}/{id}");
        let disk = DiskRequest {
            host_path: image.path.display().to_string(),
            kind: DiskKind::Image(DiskFormat::Raw),
            guest_path: layer.clone(),
            read_only: true,
            filesystem: "erofs".to_owned(),
        };
        let attached = self.vm.add_disk(disk).await;
        attached.map_err(|source| self.refused("give a container's image to", source))?;
        let scratch = self.scratch_of(id);
        let from = Blueprint { id, layer: &layer, scratch: &scratch, read_only, command, resolved };
        let container = self.make(&from).await?;
        let program = &resolved.args[0];
        let process = process::start(&self.vm, id, &container, program, command).await?;
        self.plugs.container_runs(id);
        Ok((container, process))
    }

    /// Goes on with a further container and its command.
    ///
    /// # Errors
    /// The guest does not hold them.
    pub(crate) async fn resume_further(
        &self,
        id: &str,
        pid: u32,
        stdio: coracle_uvm::container::StdioResume,
    ) -> Result<(Container, Process), Error> {
        let container = self.vm.resume_container(id).await;
        let container =
            container.map_err(|source| self.refused("resume a container of", source))?;
        let process = process::resume(&self.vm, &self.name, id, pid, stdio).await?;
        Ok((container, process))
    }

    /// Takes everything of a further container out of the VM, killing what runs in it. What is gone
    /// already is no error: it can be done again.
    ///
    /// # Errors
    /// The guest does not let go of something.
    pub(crate) async fn clear(&self, id: &str) -> Result<(), Error> {
        self.plugs.container_ended(id);
        let failed = |source| self.refused("take a container out of", source);
        let guest = self.vm.guest_state().await.map_err(failed)?;
        if guest.containers.iter().any(|there| there.container_id.as_str() == id) {
            self.vm.delete_container_state(id).await.map_err(failed)?;
        }
        let gone = self.vm.discard_combined_layers(&root_path(id), &self.scratch_of(id)).await;
        gone.map_err(failed)?;
        let layer = format!("{LAYERS}/{id}");
        for disk in self.vm.scsi_mounts().into_iter().filter(|disk| disk.uvm_path == layer) {
            disk.release().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Starts another command in a container, where what it does not say is as that container's own
    /// command has it.
    ///
    /// # Errors
    /// The command cannot be started.
    pub(crate) async fn exec_in(
        &self,
        container: &Container,
        init: &Resolved,
        command: &Command,
    ) -> Result<Process, Error> {
        let resolved = command.resolve_beside(init)?;
        let process = oci::process(&resolved, command.terminal.is_some())
            .map_err(|source| self.indescribable(source))?;
        process::exec(&self.vm, &self.name, container, &process, &resolved.user, command).await
    }
}
