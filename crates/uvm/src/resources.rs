//! More and less for a VM that runs: processors and memory.
//!
//! ```text
//!   processors up:   host plugs in ─► guest takes them online        down: guest takes them offline
//!   memory up, down: guest loads its driver ─► host asks ─► guest takes or gives it, block by block
//! ```
//!
//! How far it can go is decided when the VM is made
//! ([`crate::options::HostOptions::max_processors`], [`crate::options::HostOptions::max_memory_mib`]).
//! Processors are never unplugged; one that is offline costs the host nothing.

use std::sync::atomic::Ordering;

use coracle_bridge::message::{GuestResources, Resource, Verb};
use coracle_vmm::MiB;

use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, UtilityVm};
use crate::modify::ModifyError;
use crate::plug::to_the_end;

impl UtilityVm {
    /// Gives the VM so many processors, at least one.
    ///
    /// # Errors
    /// More than it was made for; the guest does not take them.
    pub async fn update_processors(&self, count: u32) -> Result<()> {
        let machine = self.machine.clone();
        to_the_end(async move { machine.update_processors(count).await }, |()| async {}).await
    }

    /// Gives the VM so much memory in all, in MiB, in steps of 2 MiB and never less than it was made
    /// with.
    ///
    /// # Errors
    /// Less than it began with, or more than it was made for; the guest does not follow in time, and
    /// then goes on following as far as it can.
    pub async fn update_memory(&self, mib: u64) -> Result<()> {
        let machine = self.machine.clone();
        to_the_end(async move { machine.update_memory(mib).await }, |()| async {}).await
    }

    /// The memory the VM has, in MiB.
    pub fn memory_in_mib(&self) -> u64 {
        self.machine.memory_mib.load(Ordering::Relaxed)
    }
}

impl Machine {
    async fn update_processors(&self, count: u32) -> Result<()> {
        const OPERATION: &str = "change the number of processors to";
        self.running_guest(OPERATION)?;
        let most = self.host.max_processors.max(self.first_processors);
        if count == 0 || count > most {
            let range = format!("1 to {most}");
            return Err(UvmError::ResourceRange {
                what: "processors",
                wanted: count.into(),
                range,
            });
        }
        let failed =
            |source| UvmError::Modify { operation: OPERATION, object: count.to_string(), source };
        let added = self.vm.add_vcpus(count).await;
        added.map_err(|source| failed(ModifyError::Adding(source)))?;
        let online = GuestResources { processors: count, ..GuestResources::default() };
        let asked = self.ask_guest(Verb::Update, Resource::GuestResources(online)).await;
        asked.map_err(failed)?;
        self.processors.store(count, Ordering::Relaxed);
        self.note().await;
        Ok(())
    }

    async fn update_memory(&self, mib: u64) -> Result<()> {
        const OPERATION: &str = "change the memory in MiB to";
        self.running_guest(OPERATION)?;
        let (first, most) = (self.first_memory_mib, self.host.max_memory_mib);
        if mib < first || mib > most.max(first) || !(mib - first).is_multiple_of(2) {
            let range = format!("{first} to {} MiB, in steps of 2", most.max(first));
            return Err(UvmError::ResourceRange { what: "memory", wanted: mib, range });
        }
        if most <= first {
            // Asked for what it has, and never to have more: there is no device to ask.
            return Ok(());
        }
        let failed =
            |source| UvmError::Modify { operation: OPERATION, object: mib.to_string(), source };
        let ready = GuestResources { memory: true, ..GuestResources::default() };
        let asked = self.ask_guest(Verb::Update, Resource::GuestResources(ready)).await;
        asked.map_err(failed)?;
        let extra = MiB(mib - first);
        let set = self.vm.set_extra_memory(extra, self.host.device_timeout).await;
        set.map_err(|source| failed(ModifyError::Host(source)))?;
        self.memory_mib.store(mib, Ordering::Relaxed);
        self.note().await;
        Ok(())
    }
}
