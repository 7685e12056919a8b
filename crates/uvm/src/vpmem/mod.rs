//! VPMEM: files of the host as persistent memory of the guest, read-only, mounted as layers.
//!
//! The file is mapped, not read: what the guest looks at lies in the host's page cache once, however
//! many VMs look, and where the file system can (DAX) not in the guest's memory at all.

mod slots;

use std::fs::File;
use std::path::Path;

use coracle_bridge::message::{CoraclePmem, Resource, Verb, VpmemDevice};
use coracle_vmm::{Device, DeviceId, Pmem};

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm, locked};
use crate::modify::ModifyError;
use crate::plug::{Released, Reserved, share, to_the_end};

use slots::{FileId, Slot};
pub(crate) use slots::{SavedSlots, Slots};

/// The kernel's memory devices come in pieces of this many bytes.
const PAGE: u64 = 4096;

impl UtilityVm {
    /// Maps a file and mounts it read-only in the guest; says where. Adding a file that is there
    /// counts another use of it.
    ///
    /// Cancel safe: a caller that goes away leaves the file as if it had not asked.
    ///
    /// # Errors
    /// In this order: the file cannot be examined; [`UvmError::MaxVpmemLayerSize`];
    /// [`UvmError::NoAvailableLocation`], upon which callers fall back to
    /// [`UtilityVm::add_scsi`]; the host or the guest refuses.
    #[doc(alias = "AddVPMEM")]
    pub async fn add_vpmem(&self, host_path: &str) -> Result<String> {
        let (machine, path) = (self.machine.clone(), host_path.to_owned());
        let undo = (self.clone(), path.clone());
        let add = async move {
            let added = machine.add_vpmem(&path).await;
            machine.note().await;
            added
        };
        to_the_end(add, |_| async move {
            let (vm, path) = undo;
            if let Err(error) = vm.remove_vpmem(&path).await {
                tracing::error!(path, %error, "a pmem device nobody wants stays mounted");
            }
        })
        .await
    }

    /// Ends one use of a file; with the last the guest unmounts it. The device stays, parked, until
    /// the VM ends.
    ///
    /// # Errors
    /// [`UvmError::NotAttached`]; the guest cannot unmount it: the use stays, and removing can be
    /// tried again.
    #[doc(alias = "RemoveVPMEM")]
    pub async fn remove_vpmem(&self, host_path: &str) -> Result<()> {
        let (machine, path) = (self.machine.clone(), host_path.to_owned());
        let remove = async move {
            let removed = machine.remove_vpmem(&path).await;
            machine.note().await;
            removed
        };
        to_the_end(remove, |()| async {}).await
    }

    /// How often each file is used, by its path: for who has adopted the VM.
    pub fn vpmem_uses(&self) -> std::collections::BTreeMap<String, u32> {
        let slots = locked(&self.machine.vpmem);
        slots.shelf.counted().into_iter().collect()
    }

    /// How many PMEM devices are plugged in that nobody uses: they cannot be unplugged.
    pub fn parked_vpmem(&self) -> usize {
        locked(&self.machine.vpmem).parked()
    }
}

impl Machine {
    async fn add_vpmem(&self, host_path: &str) -> Result<String> {
        self.may_plug("add a pmem device")?;
        loop {
            // A file that is there is not looked at again: it may be gone by now.
            let known = locked(&self.vpmem).shelf.get(&host_path.to_owned()).is_some();
            let (id, size) = if known { (None, 0) } else { self.examine(host_path)? };
            let reserved = {
                let mut slots = locked(&self.vpmem);
                let id = id.unwrap_or_else(FileId::unknown);
                slots.reserve(host_path, id, self.vpmem_count)?
            };
            match reserved {
                Reserved::There(slot) => return Ok(slot.uvm_path()),
                Reserved::Arriving(slot, fate) => {
                    return fate.wait().await.map(|()| slot.uvm_path()).map_err(UvmError::Shared);
                }
                Reserved::Leaving(fate) => drop(fate.wait().await),
                Reserved::First(slot) => {
                    let plugged = async {
                        let intended = self.intend("add a pmem device").await;
                        if intended.is_err() && slot.is_plugged {
                            // It stays what it was: parked.
                            let id = id.unwrap_or_else(FileId::unknown);
                            locked(&self.vpmem).park(slot.number, host_path, id);
                        }
                        intended?;
                        self.plug_and_mount(host_path, &slot, id, size).await
                    };
                    return share(plugged.await, |outcome| {
                        locked(&self.vpmem).shelf.settle(&host_path.to_owned(), outcome);
                    })
                    .map(|()| slot.uvm_path());
                }
            }
        }
    }

    /// The order of the checks is the seed's: the file, its size, then the slot.
    fn examine(&self, host_path: &str) -> Result<(Option<FileId>, u64)> {
        let stat = std::fs::metadata(host_path).map_err(|source| UvmError::Source {
            operation: "examine the layer",
            path: host_path.into(),
            source,
        })?;
        if stat.len() > self.vpmem_size {
            return Err(UvmError::MaxVpmemLayerSize);
        }
        Ok((Some(FileId::of(&stat)), stat.len()))
    }

    async fn plug_and_mount(
        &self,
        host_path: &str,
        slot: &Slot,
        id: Option<FileId>,
        size: u64,
    ) -> Result<()> {
        let failed = |source| UvmError::Modify {
            operation: "uvm::AddVPMEM: failed to modify utility VM configuration",
            object: host_path.to_owned(),
            source,
        };
        if !slot.is_plugged {
            let file = open(Path::new(host_path))?;
            // What is beyond the last whole page cannot be mapped; a fixed VHD ends so.
            let size = size - size % PAGE;
            let device = Device::Pmem(Pmem {
                id: device_id(slot),
                file: file.into(),
                size,
                read_only: true,
            });
            let plugged = self.vm.plug(device).await;
            plugged.map_err(|source| failed(ModifyError::Adding(source)))?;
        }
        let mounted = async {
            let address = self.vm.pmem_address(&device_id(slot)).await;
            let address = address.map_err(ModifyError::Adding)?;
            self.ask_guest(Verb::Add, device(slot, address)).await
        };
        let mounted = mounted.await;
        if mounted.is_err()
            && let Some(id) = id
        {
            // It cannot be unplugged again.
            locked(&self.vpmem).park(slot.number, host_path, id);
        }
        mounted.map_err(failed)
    }

    /// Takes away a use that was coming or going when this VM's former owner died; the slot was taken
    /// off the shelf. A device that had been plugged in stays, parked.
    pub(crate) async fn clear_pmem(&self, host_path: &str, slot: &Slot) {
        self.forget_in_guest(host_path, device(slot, 0)).await;
        let is_plugged = self.vm.pmem_address(&device_id(slot)).await.is_ok();
        let mut slots = locked(&self.vpmem);
        slots.shelf.depart(&host_path.to_owned(), &Ok(()));
        if is_plugged {
            let stat = std::fs::metadata(host_path).ok();
            let id = stat.map_or_else(FileId::unknown, |stat| FileId::of(&stat));
            slots.park(slot.number, host_path, id);
        }
    }

    async fn remove_vpmem(&self, host_path: &str) -> Result<()> {
        let path = host_path.to_owned();
        loop {
            let released = locked(&self.vpmem).shelf.release(&path);
            match released {
                Released::Absent => return Err(UvmError::NotAttached),
                Released::Used => return Ok(()),
                Released::Busy(fate) => drop(fate.wait().await),
                Released::Last(slot) => {
                    let asked = async {
                        self.intend("remove a pmem device").await?;
                        let asked = self.ask_guest(Verb::Remove, device(&slot, 0)).await;
                        asked.map_err(|source| UvmError::Modify {
                            operation: "failed to remove VPMEM",
                            object: path.clone(),
                            source,
                        })
                    };
                    let asked = asked.await;
                    let id = std::fs::metadata(&path).ok().map(|stat| FileId::of(&stat));
                    return share(asked, |outcome| {
                        let mut slots = locked(&self.vpmem);
                        slots.shelf.depart(&path, outcome);
                        if outcome.is_ok() {
                            slots.park(slot.number, &path, id.unwrap_or_else(FileId::unknown));
                        }
                    });
                }
            }
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| UvmError::Source {
        operation: "open the layer",
        path: path.to_owned(),
        source,
    })
}

fn device_id(slot: &Slot) -> DeviceId {
    DeviceId::new(format!("pmem{}", slot.number)).expect("`pmem` and a number are a device's name")
}

fn device(slot: &Slot, address: u64) -> Resource {
    Resource::VpmemDevice(VpmemDevice {
        device_number: slot.number,
        mount_path: slot.uvm_path(),
        coracle: Some(CoraclePmem { address, filesystem: "auto".to_owned() }),
        ..VpmemDevice::default()
    })
}
