//! What assigning and removing a device does, on the host and in the guest.

use coracle_bridge::message::{CoraclePci, Resource, Verb, VpciDevice};
use coracle_vmm::{Device, PciAddress, PciDevice, VmmError};
use uuid::Uuid;

use super::access::{self, Held};
use super::bus::Sysfs;
use super::claim;
use super::error::VpciError;
use super::source::Source;
use super::{Place, SavedVpci, There, Vpci};
use crate::errors::{Result, UvmError};
use crate::lifecycle::{Machine, locked};
use crate::modify::ModifyError;
use crate::plug::{Released, Reserved, Shelf, share};
use crate::schema::VirtualPciDevice;

impl Machine {
    pub(super) async fn assign_device(
        &self,
        device: &VirtualPciDevice,
    ) -> Result<(String, PciAddress)> {
        self.running_guest("assign a device")?;
        if !self.vpci_enabled {
            return Err(UvmError::VpciDisabled);
        }
        let named = device.functions.first().map_or("", |f| f.device_instance_path.as_str());
        let source = Source::of(device, &Sysfs::of_host().pci())
            .map_err(|source| UvmError::Vpci { device: named.to_owned(), source })?;
        if source.pins_memory() && !self.physical_memory {
            return Err(UvmError::VpciMemory);
        }
        if source.shares_memory() && !self.host.share_memory {
            return Err(UvmError::MemoryNotShared);
        }
        let path = source.to_string();
        loop {
            let reserved = locked(&self.vpci).reserve(&path, &source);
            match reserved {
                Reserved::There(place) => return self.known(&path, &place),
                Reserved::Arriving(place, fate) => {
                    fate.wait().await.map_err(UvmError::Shared)?;
                    return self.known(&path, &place);
                }
                Reserved::Leaving(fate) => drop(fate.wait().await),
                Reserved::First(place) => {
                    let arrived = async {
                        self.intend("assign a device").await?;
                        self.take_and_plug(&path, &place).await
                    };
                    let arrived = arrived.await;
                    let arrived =
                        share(arrived, |outcome| locked(&self.vpci).shelf.settle(&path, outcome));
                    self.note().await;
                    arrived?;
                    return self.known(&path, &place);
                }
            }
        }
    }

    fn known(&self, path: &str, place: &Place) -> Result<(String, PciAddress)> {
        let vpci = locked(&self.vpci);
        let there = vpci.there.get(path).ok_or(UvmError::Abandoned)?;
        Ok((place.id.to_string(), there.address))
    }

    async fn take_and_plug(&self, path: &str, place: &Place) -> Result<()> {
        let (source, user) = (place.source.clone(), self.host.user);
        let failed = |source| UvmError::Vpci { device: path.to_owned(), source };
        let (held, source) =
            blocking(move || access::take(&source, user)).await?.map_err(failed)?;
        let device = Device::Pci(PciDevice { id: place.device(), source });
        if let Err(source) = self.vm.plug(device).await {
            give_back_quietly(path, held).await;
            return Err(failed_add(path, ModifyError::Adding(source)));
        }
        let seen = async {
            let address = self.vm.pci_address(&place.device()).await;
            let address = address.map_err(ModifyError::Adding)?;
            self.ask_guest(Verb::Add, resource(place, address)).await.map(|()| address)
        };
        match seen.await {
            Ok(address) => {
                let there = There { address, held };
                locked(&self.vpci).there.insert(path.to_owned(), there);
                Ok(())
            }
            Err(source) => {
                match self.vm.unplug(&place.device(), self.host.cleanup_timeout).await {
                    Ok(()) => give_back_quietly(path, held).await,
                    // The VM has it still: taking it away would hang. It is given back at the end.
                    Err(error) => {
                        tracing::error!(path, %error, "a refused device stays plugged in");
                        locked(&self.vpci).stranded.extend(held);
                    }
                }
                Err(failed_add(path, source))
            }
        }
    }

    pub(super) async fn remove_device(&self, id: &str) -> Result<()> {
        self.running_guest("remove a device")?;
        let unknown = || UvmError::NoVpciDevice { id: id.to_owned() };
        let path = locked(&self.vpci).path_of(id).ok_or_else(unknown)?;
        loop {
            let released = locked(&self.vpci).shelf.release(&path);
            match released {
                Released::Absent => return Err(unknown()),
                Released::Used => return Ok(()),
                Released::Busy(fate) => drop(fate.wait().await),
                Released::Last(place) => {
                    let gone = async {
                        self.intend("remove a device").await?;
                        self.unplug_and_give_back(&path, &place).await
                    };
                    let gone = share(gone.await, |outcome| {
                        let mut vpci = locked(&self.vpci);
                        vpci.shelf.depart(&path, outcome);
                        if outcome.is_ok() {
                            vpci.there.remove(&path);
                        }
                    });
                    self.note().await;
                    return gone;
                }
            }
        }
    }

    async fn unplug_and_give_back(&self, path: &str, place: &Place) -> Result<()> {
        let failed = |source| {
            let operation = "failed to remove the device";
            UvmError::Modify { operation, object: path.to_owned(), source }
        };
        let known = locked(&self.vpci).there.get(path).map(|t| (t.address, t.held.clone()));
        let Some((address, held)) = known else { return Ok(()) };
        self.ask_guest(Verb::Remove, resource(place, address)).await.map_err(failed)?;
        match self.vm.unplug(&place.device(), self.host.device_timeout).await {
            Ok(()) | Err(VmmError::UnknownDevice { .. }) => {}
            Err(error) => return Err(failed(ModifyError::Removing(error))),
        }
        let Some(held) = held else { return Ok(()) };
        let given = blocking(move || access::give_back(&held)).await?;
        given.map_err(|source| UvmError::Vpci { device: path.to_owned(), source })
    }

    /// The VM is gone: what it had of the host goes back.
    pub(crate) async fn give_devices_back(&self) {
        let (there, stranded) = {
            let mut vpci = locked(&self.vpci);
            (std::mem::take(&mut vpci.there), std::mem::take(&mut vpci.stranded))
        };
        for (path, device) in there {
            give_back_quietly(&path, device.held).await;
        }
        for held in stranded {
            give_back_quietly("", Some(held)).await;
        }
    }
}

impl Machine {
    /// Takes away what was on its way in or out when this VM's former owner died. A device of the host
    /// that it had just taken stays with vfio-pci until the host's own driver is asked to look again.
    pub(crate) async fn clear_vpci(&self, underway: Vec<(String, Place)>) {
        for (path, place) in underway {
            let address = self.vm.pci_address(&place.device()).await.ok();
            if let Some(address) = address {
                self.forget_in_guest(&path, resource(&place, address)).await;
            }
            self.unplug_leftover(&place.device()).await;
            let held = locked(&self.vpci).there.remove(&path).and_then(|there| there.held);
            let given = match (held, &place.source) {
                (Some(held), _) => blocking(move || access::give_back(&held)).await,
                (None, Source::Host(address)) => {
                    let address = *address;
                    blocking(move || claim::free(&Sysfs::of_host(), address)).await
                }
                (None, _) => Ok(Ok(())),
            };
            if let Ok(Err(error)) = given {
                tracing::error!(path, %error, "a device is not given back to the host");
            }
            let mut vpci = locked(&self.vpci);
            vpci.shelf.release(&path);
            vpci.shelf.depart(&path, &Ok(()));
        }
    }
}

/// Gives back what a VM that is gone had of the host; goes on after a failure and tells the first.
pub(super) async fn give_all_back(saved: &SavedVpci) -> Result<()> {
    let mut outcome = Ok(());
    let held = saved.there.iter().filter_map(|(path, there)| Some((path, there.held.clone()?)));
    let stranded = saved.stranded.iter().map(|held| (None, held.clone()));
    for (path, held) in held.map(|(path, held)| (Some(path), held)).chain(stranded) {
        let device = path.cloned().unwrap_or_default();
        let given = blocking(move || access::give_back(&held)).await;
        let given = given.and_then(|g| g.map_err(|source| UvmError::Vpci { device, source }));
        outcome = outcome.and(given);
    }
    for (path, place) in saved.underway() {
        if let Source::Host(address) = place.source
            && !saved.there.contains_key(&path)
        {
            let freed = blocking(move || claim::free(&Sysfs::of_host(), address)).await;
            let freed =
                freed.and_then(|f| f.map_err(|source| UvmError::Vpci { device: path, source }));
            outcome = outcome.and(freed);
        }
    }
    outcome
}

impl Vpci {
    pub(crate) fn save(&self) -> SavedVpci {
        SavedVpci {
            counter: self.counter,
            shelf: self.shelf.save(),
            there: self.there.clone(),
            stranded: self.stranded.clone(),
        }
    }

    pub(crate) fn restore(saved: &SavedVpci) -> Self {
        Self {
            counter: saved.counter,
            shelf: Shelf::restore(&saved.shelf),
            there: saved.there.clone(),
            stranded: saved.stranded.clone(),
        }
    }

    fn reserve(&mut self, path: &String, source: &Source) -> Reserved<Place> {
        let number = self.counter + 1;
        let reserved = self.shelf.reserve(path, |_| {
            Ok::<_, std::convert::Infallible>(Place {
                id: Uuid::new_v4(),
                number,
                source: source.clone(),
            })
        });
        let Ok(reserved) = reserved;
        if matches!(reserved, Reserved::First(_)) {
            self.counter = number;
        }
        reserved
    }

    /// GUIDs are the same in any case.
    fn path_of(&self, id: &str) -> Option<String> {
        let id = Uuid::parse_str(id).ok()?;
        let found = self.shelf.iter().find(|(_, place)| place.id == id);
        found.map(|(path, _)| path.clone())
    }
}

fn resource(place: &Place, address: PciAddress) -> Resource {
    Resource::VpciDevice(VpciDevice {
        vmbus_guid: place.id.to_string(),
        coracle: Some(CoraclePci { address: address.to_string() }),
    })
}

fn failed_add(path: &str, source: ModifyError) -> UvmError {
    let operation = "failed to assign the device";
    UvmError::Modify { operation, object: path.to_owned(), source }
}

async fn give_back_quietly(path: &str, held: Option<Held>) {
    let Some(held) = held else { return };
    match blocking(move || access::give_back(&held)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(path, %error, "a device is not given back to the host"),
        Err(error) => tracing::error!(path, %error, "a device is not given back to the host"),
    }
}

/// A driver may take long to let a device go.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VpciError> + Send + 'static,
) -> Result<Result<T, VpciError>> {
    tokio::task::spawn_blocking(work).await.map_err(|_| UvmError::Abandoned)
}
