//! Taking a PCI device from the host's own driver, and giving it back.
//!
//! ```text
//!   take:  group fit? -> only vfio-pci may take it -> unbind -> probe -> vfio-pci holds it
//!   give:  whoever might before may take it -> unbind from vfio-pci -> bind to its former driver
//! ```
//!
//! A step of taking that fails has those before it undone. Giving back can be tried again.

use coracle_vmm::PciAddress;

use super::bus::Bus;
use super::error::VpciError;

/// The driver that hands devices to programs.
const VFIO: &str = "vfio-pci";

/// Drivers that do nothing with a device by themselves, so that its group may be handed over.
const HARMLESS: [&str; 3] = [VFIO, "pci-stub", "pcieport"];

/// A device that vfio-pci holds for us, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Claim {
    pub(crate) address: PciAddress,
    pub(crate) group: u32,
    /// None: vfio-pci held it already, and shall keep it.
    former: Option<Former>,
}

/// How a device was.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Former {
    driver: Option<String>,
    only_driver: Option<String>,
}

/// Takes the device.
pub(crate) fn take(bus: &impl Bus, address: PciAddress) -> Result<Claim, VpciError> {
    if !bus.has(address) {
        return Err(VpciError::NoDevice { address });
    }
    let group =
        bus.group(address).ok_or_else(|| VpciError::NoIommu { device: address.to_string() })?;
    let neighbours = unfit(bus, address, group);
    if !neighbours.is_empty() {
        return Err(VpciError::SharedGroup { address, group, neighbours });
    }
    if !bus.has_driver(VFIO) {
        return Err(VpciError::NoVfio);
    }
    let driver = bus.driver(address);
    if driver.as_deref() == Some(VFIO) {
        return Ok(Claim { address, group, former: None });
    }
    let former = Former { driver, only_driver: bus.only_driver(address) };
    let taken = rebind(bus, address, &former);
    if let Err(error) = taken {
        if let Err(undo) = restore(bus, address, &former) {
            tracing::error!(%address, error = %undo, "cannot undo the taking of a PCI device");
        }
        return Err(error);
    }
    Ok(Claim { address, group, former: Some(former) })
}

/// Frees a device of which nobody knows how it was: the host's drivers are asked anew.
pub(crate) fn free(bus: &impl Bus, address: PciAddress) -> Result<(), VpciError> {
    if !bus.has(address) || bus.only_driver(address).as_deref() != Some(VFIO) {
        return Ok(());
    }
    restore(bus, address, &Former::default())?;
    step("look for a driver for", address, bus.probe(address))
}

/// Gives the device back to whom it was taken from.
pub(crate) fn give_back(bus: &impl Bus, claim: &Claim) -> Result<(), VpciError> {
    match &claim.former {
        // It may have been pulled out of the host meanwhile.
        Some(former) if bus.has(claim.address) => restore(bus, claim.address, former),
        Some(_) | None => Ok(()),
    }
}

/// The other devices of the group that a driver of the host's works with.
fn unfit(bus: &impl Bus, address: PciAddress, group: u32) -> Vec<String> {
    let others = bus.members(group).into_iter().filter(|other| *other != address);
    others
        .filter_map(|other| {
            let driver = bus.driver(other)?;
            (!HARMLESS.contains(&driver.as_str())).then(|| format!("{other} ({driver})"))
        })
        .collect()
}

fn rebind(bus: &impl Bus, address: PciAddress, former: &Former) -> Result<(), VpciError> {
    step("reserve for vfio-pci", address, bus.set_only_driver(address, Some(VFIO)))?;
    if let Some(driver) = &former.driver {
        step("unbind the driver of", address, bus.unbind(address, driver))?;
    }
    step("look for a driver for", address, bus.probe(address))?;
    if bus.driver(address).as_deref() != Some(VFIO) {
        return Err(VpciError::NotTaken { address });
    }
    Ok(())
}

/// Whatever state the device is in, it is as it was before. Every step is taken even if one fails;
/// the first failure is told.
fn restore(bus: &impl Bus, address: PciAddress, former: &Former) -> Result<(), VpciError> {
    let freed = bus.set_only_driver(address, former.only_driver.as_deref());
    let freed = step("release from vfio-pci", address, freed);
    let unbound = match bus.driver(address) {
        Some(driver) if driver == VFIO => {
            step("unbind vfio-pci from", address, bus.unbind(address, VFIO))
        }
        Some(_) | None => Ok(()),
    };
    let bound = match &former.driver {
        Some(driver) if bus.driver(address).as_ref() != Some(driver) => {
            step("bind the former driver of", address, bus.bind(address, driver))
        }
        Some(_) | None => Ok(()),
    };
    freed.and(unbound).and(bound)
}

fn step(
    operation: &'static str,
    address: PciAddress,
    done: std::io::Result<()>,
) -> Result<(), VpciError> {
    done.map_err(|source| VpciError::Step { operation, address, source })
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;
    use std::io;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    struct Device {
        group: Option<u32>,
        driver: Option<String>,
        only: Option<String>,
        /// The driver that fits it.
        fits: Option<&'static str>,
    }

    /// A kernel: its devices follow the rules of the real one, and the n-th change fails.
    #[derive(Debug, Default)]
    struct Kernel {
        devices: RefCell<BTreeMap<PciAddress, Device>>,
        changes: Cell<u32>,
        fails: Option<u32>,
        no_vfio: bool,
    }

    impl Kernel {
        fn change(&self) -> io::Result<()> {
            self.changes.set(self.changes.get() + 1);
            if self.fails == Some(self.changes.get()) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok(())
        }

        fn get(&self, address: PciAddress) -> Device {
            self.devices.borrow().get(&address).cloned().unwrap_or_default()
        }

        fn set(&self, address: PciAddress, change: impl FnOnce(&mut Device)) {
            change(self.devices.borrow_mut().entry(address).or_default());
        }
    }

    impl Bus for Kernel {
        fn has(&self, address: PciAddress) -> bool {
            self.devices.borrow().contains_key(&address)
        }
        fn group(&self, address: PciAddress) -> Option<u32> {
            self.get(address).group
        }
        fn members(&self, group: u32) -> Vec<PciAddress> {
            let devices = self.devices.borrow();
            devices.iter().filter(|(_, d)| d.group == Some(group)).map(|(a, _)| *a).collect()
        }
        fn driver(&self, address: PciAddress) -> Option<String> {
            self.get(address).driver
        }
        fn only_driver(&self, address: PciAddress) -> Option<String> {
            self.get(address).only
        }
        fn has_driver(&self, driver: &str) -> bool {
            driver != VFIO || !self.no_vfio
        }
        fn set_only_driver(&self, address: PciAddress, driver: Option<&str>) -> io::Result<()> {
            self.change()?;
            self.set(address, |device| device.only = driver.map(str::to_owned));
            Ok(())
        }
        fn unbind(&self, address: PciAddress, driver: &str) -> io::Result<()> {
            self.change()?;
            if self.driver(address).as_deref() != Some(driver) {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.set(address, |device| device.driver = None);
            Ok(())
        }
        fn probe(&self, address: PciAddress) -> io::Result<()> {
            self.change()?;
            let device = self.get(address);
            let fits = device.only.or_else(|| device.fits.map(str::to_owned));
            if device.driver.is_none() {
                self.set(address, |device| device.driver = fits);
            }
            Ok(())
        }
        fn bind(&self, address: PciAddress, driver: &str) -> io::Result<()> {
            self.change()?;
            let device = self.get(address);
            let may = device.only.is_none_or(|only| only == driver);
            if !may || device.driver.is_some() {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.set(address, |device| device.driver = Some(driver.to_owned()));
            Ok(())
        }
    }

    fn address(slot: u8) -> PciAddress {
        PciAddress { domain: 0, bus: 0, slot, function: 0 }
    }

    fn nic() -> Device {
        Device { group: Some(7), driver: Some("e1000".into()), only: None, fits: Some("e1000") }
    }

    fn kernel(devices: &[Device]) -> Kernel {
        let devices = (1..).map(address).zip(devices.iter().cloned()).collect();
        Kernel { devices: RefCell::new(devices), ..Kernel::default() }
    }

    #[test]
    fn a_device_is_taken_from_its_driver_and_given_back_to_it() {
        let kernel = kernel(&[nic()]);
        let claim = take(&kernel, address(1)).unwrap();
        assert_eq!((claim.group, kernel.driver(address(1)).as_deref()), (7, Some(VFIO)));
        give_back(&kernel, &claim).unwrap();
        assert_eq!(kernel.get(address(1)), nic());
    }

    #[test]
    fn a_device_without_a_driver_is_left_without_one() {
        let before = Device { driver: None, fits: None, ..nic() };
        let kernel = kernel(std::slice::from_ref(&before));
        let claim = take(&kernel, address(1)).unwrap();
        give_back(&kernel, &claim).unwrap();
        assert_eq!(kernel.get(address(1)), before);
    }

    #[test]
    fn what_an_administrator_gave_to_vfio_stays_there() {
        let before = Device { driver: Some(VFIO.into()), only: Some(VFIO.into()), ..nic() };
        let kernel = kernel(std::slice::from_ref(&before));
        let claim = take(&kernel, address(1)).unwrap();
        give_back(&kernel, &claim).unwrap();
        assert_eq!((kernel.get(address(1)), kernel.changes.get()), (before, 0));
    }

    #[test]
    fn a_group_with_a_device_at_work_is_refused_and_its_neighbour_named() {
        let disk = Device { driver: Some("nvme".into()), ..nic() };
        let bridge = Device { driver: Some("pcieport".into()), ..nic() };
        let kernel = kernel(&[nic(), bridge, disk]);
        let error = take(&kernel, address(1)).unwrap_err();
        let text = "0000:00:01.0 shares IOMMU group 7 with 0000:00:03.0 (nvme)";
        assert_eq!((error.to_string().as_str(), kernel.changes.get()), (text, 0));
    }

    #[test]
    fn without_device_iommu_or_vfio_nothing_is_touched() {
        let kernel = kernel(&[Device { group: None, ..nic() }, nic()]);
        assert!(matches!(take(&kernel, address(9)), Err(VpciError::NoDevice { .. })));
        assert!(matches!(take(&kernel, address(1)), Err(VpciError::NoIommu { .. })));
        let kernel = Kernel { no_vfio: true, ..kernel };
        assert!(matches!(take(&kernel, address(2)), Err(VpciError::NoVfio)));
        assert_eq!(kernel.changes.get(), 0);
    }

    #[test]
    fn a_device_gone_from_the_host_needs_no_giving_back() {
        let kernel = kernel(&[nic()]);
        let claim = take(&kernel, address(1)).unwrap();
        kernel.devices.borrow_mut().clear();
        give_back(&kernel, &claim).unwrap();
    }

    proptest! {
        /// Whichever change fails while a device is taken, it is as it was before.
        #[test]
        fn a_taking_that_fails_anywhere_is_undone(
            fails in 1..4_u32,
            has_driver: bool,
            only in prop_oneof![Just(None), Just(Some("e1000".to_owned()))],
        ) {
            let before =
                Device { driver: has_driver.then(|| "e1000".to_owned()), only, ..nic() };
            let kernel = Kernel { fails: Some(fails), ..kernel(std::slice::from_ref(&before)) };
            let taken = take(&kernel, address(1));
            let kernel = Kernel { fails: None, ..kernel };
            // Without a driver to unbind there are but two changes.
            prop_assert_eq!(taken.is_err(), fails < 3 + u32::from(has_driver));
            match taken {
                Ok(claim) => give_back(&kernel, &claim).unwrap(),
                Err(error) => {
                    let told = matches!(error, VpciError::Step { .. });
                    prop_assert!(told, "{}", error);
                }
            }
            prop_assert_eq!(kernel.get(address(1)), before);
        }

        /// Whichever change of giving back fails, doing it again does it.
        #[test]
        fn a_giving_back_that_fails_can_be_tried_again(fails in 1..4_u32) {
            let mut kernel = kernel(&[nic()]);
            let claim = take(&kernel, address(1)).unwrap();
            kernel.changes.set(0);
            kernel.fails = Some(fails);
            prop_assert!(give_back(&kernel, &claim).is_err());
            kernel.fails = None;
            give_back(&kernel, &claim).unwrap();
            prop_assert_eq!(kernel.get(address(1)), nic());
        }
    }
}
