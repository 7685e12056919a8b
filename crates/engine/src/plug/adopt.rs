//! What is plugged into a VM that was taken over.

use std::collections::BTreeMap;

use coracle_uvm::UtilityVm;

use super::Plugs;
use super::attach::{Handle, HandleId};
use super::table::{SavedPlug, Table};
use crate::ledger::Ledger;
use crate::sandbox::container::is_layer;

impl Plugs {
    /// The plugs that were written down, of a VM that was adopted. What nobody was told of, because the
    /// former owner died on the way, is taken away; what the VM has no more is forgotten.
    pub(crate) async fn adopt(
        vm: UtilityVm,
        ledger: Ledger,
        saved: &[SavedPlug],
        containers: &[String],
    ) -> Self {
        let on_its_way = saved.iter().filter(|plug| plug.handle.is_none());
        for destination in on_its_way.filter_map(|plug| plug.plugged.spec.destination.as_deref()) {
            for container in containers {
                if let Err(error) = vm.hide_in_container(container, destination).await {
                    tracing::debug!(container, destination, %error, "there is nothing to hide");
                }
            }
        }
        let table = Table::restore(saved, |id| {
            let found = Handle::find(&vm, id);
            if found.is_none() {
                tracing::warn!(?id, "the VM has this no more; it is forgotten");
            }
            found
        });
        let plugs = Self::new(vm, Some(ledger));
        *plugs.locked() = table;
        containers.iter().for_each(|container| plugs.container_runs(container));
        plugs.release_strays().await;
        plugs.note().await;
        plugs
    }

    /// Takes out what the VM has and no line of the table tells of.
    async fn release_strays(&self) {
        let vm = &self.vm;
        for stray in self.strays() {
            tracing::info!(?stray, "nobody was told of this; it is taken out");
            let Some(handle) = Handle::find(vm, &stray) else { continue };
            if let Err((_, error)) = handle.detach(vm).await {
                tracing::error!(?stray, %error, "it cannot be taken out");
            }
        }
    }

    /// What the VM has and no line of the table tells of.
    pub(crate) fn strays(&self) -> Vec<HandleId> {
        let claimed: Vec<HandleId> =
            self.locked().save(Handle::id).into_iter().filter_map(|plug| plug.handle).collect();
        let vm = &self.vm;
        let mut strays: Vec<HandleId> = Vec::new();
        // A container's image is the container's.
        let disks = vm.scsi_mounts().into_iter().filter(|disk| !is_layer(&disk.uvm_path));
        strays.extend(disks.map(|mount| HandleId::Disk(mount.id())));
        let (nine, tags) = vm.share_names();
        strays.extend(nine.into_iter().map(HandleId::Plan9));
        strays.extend(tags.into_iter().map(HandleId::VirtioFs));
        strays.extend(vm.pipes().into_iter().map(|pipe| HandleId::Pipe(pipe.host_path)));
        strays.retain(|stray| !claimed.contains(stray));
        let files = |path: &str| {
            let is_it = |id: &&HandleId| matches!(id, HandleId::Pmem(known) if known == path);
            claimed.iter().filter(is_it).count()
        };
        let devices = |name: &str| {
            let of = |id: &&HandleId| match id {
                HandleId::Device(known) | HandleId::Served(known, _) => known == name,
                HandleId::Disk(_)
                | HandleId::VirtioFs(_)
                | HandleId::Plan9(_)
                | HandleId::Pipe(_)
                | HandleId::Pmem(_) => false,
            };
            claimed.iter().filter(of).count()
        };
        strays.extend(beyond(vm.vpmem_uses(), files).into_iter().map(HandleId::Pmem));
        strays.extend(beyond(vm.device_uses(), devices).into_iter().map(HandleId::Device));
        strays
    }
}

/// Counted things that are used more often than claimed, once for each time too many.
fn beyond(uses: BTreeMap<String, u32>, claims: impl Fn(&str) -> usize) -> Vec<String> {
    let surplus = |(name, used): (String, u32)| {
        let many = usize::try_from(used).unwrap_or(0).saturating_sub(claims(&name));
        std::iter::repeat_n(name, many)
    };
    uses.into_iter().flat_map(surplus).collect()
}
