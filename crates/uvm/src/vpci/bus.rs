//! The host's PCI bus as sysfs shows it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_vmm::PciAddress;

/// What is asked of the bus and done to it. A trait, so that every failure can be had in a test.
pub(crate) trait Bus {
    /// Whether there is such a device.
    fn has(&self, address: PciAddress) -> bool;
    /// Its IOMMU group.
    fn group(&self, address: PciAddress) -> Option<u32>;
    /// All devices of a group.
    fn members(&self, group: u32) -> Vec<PciAddress>;
    /// The driver that holds it.
    fn driver(&self, address: PciAddress) -> Option<String>;
    /// The one driver that may take it; none: any that fits.
    fn only_driver(&self, address: PciAddress) -> Option<String>;
    /// Whether such a driver is loaded.
    fn has_driver(&self, driver: &str) -> bool;
    /// Says which one driver may take it.
    fn set_only_driver(&self, address: PciAddress, driver: Option<&str>) -> io::Result<()>;
    /// Takes it from its driver.
    fn unbind(&self, address: PciAddress, driver: &str) -> io::Result<()>;
    /// Has the kernel look for a driver.
    fn probe(&self, address: PciAddress) -> io::Result<()>;
    /// Gives it to a driver.
    fn bind(&self, address: PciAddress, driver: &str) -> io::Result<()>;
}

/// The real bus.
#[derive(Debug, Clone)]
pub(crate) struct Sysfs {
    /// Where sysfs is mounted.
    root: PathBuf,
}

impl Sysfs {
    /// That of this host.
    pub(crate) fn of_host() -> Self {
        Self { root: PathBuf::from("/sys") }
    }

    /// The folder of the bus.
    pub(crate) fn pci(&self) -> PathBuf {
        self.root.join("bus/pci")
    }

    fn device(&self, address: PciAddress) -> PathBuf {
        self.pci().join(format!("devices/{address}"))
    }

    fn drivers(&self, driver: &str) -> PathBuf {
        self.pci().join("drivers").join(driver)
    }
}

impl Bus for Sysfs {
    fn has(&self, address: PciAddress) -> bool {
        self.device(address).exists()
    }

    fn group(&self, address: PciAddress) -> Option<u32> {
        group_of(&self.device(address))
    }

    fn members(&self, group: u32) -> Vec<PciAddress> {
        let folder = self.root.join(format!("kernel/iommu_groups/{group}/devices"));
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut members: Vec<PciAddress> =
            entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        members.sort_unstable();
        members
    }

    fn driver(&self, address: PciAddress) -> Option<String> {
        last_part(&fs::read_link(self.device(address).join("driver")).ok()?)
    }

    fn only_driver(&self, address: PciAddress) -> Option<String> {
        let text = fs::read_to_string(self.device(address).join("driver_override")).ok()?;
        let text = text.trim();
        (!text.is_empty() && text != "(null)").then(|| text.to_owned())
    }

    fn has_driver(&self, driver: &str) -> bool {
        self.drivers(driver).exists()
    }

    fn set_only_driver(&self, address: PciAddress, driver: Option<&str>) -> io::Result<()> {
        // A line without a name clears it.
        let text = format!("{}\n", driver.unwrap_or_default());
        write(&self.device(address).join("driver_override"), &text)
    }

    fn unbind(&self, address: PciAddress, driver: &str) -> io::Result<()> {
        write(&self.drivers(driver).join("unbind"), &address.to_string())
    }

    fn probe(&self, address: PciAddress) -> io::Result<()> {
        write(&self.pci().join("drivers_probe"), &address.to_string())
    }

    fn bind(&self, address: PciAddress, driver: &str) -> io::Result<()> {
        write(&self.drivers(driver).join("bind"), &address.to_string())
    }
}

/// The IOMMU group of a device's folder.
pub(crate) fn group_of(device: &Path) -> Option<u32> {
    last_part(&fs::read_link(device.join("iommu_group")).ok()?)?.parse().ok()
}

fn last_part(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

/// One write, and no file is made: sysfs takes a whole command at a time.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use io::Write;
    fs::File::options().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_device_is_read_as_the_kernel_shows_it() {
        let root = tempfile::tempdir().unwrap();
        let bus = Sysfs { root: root.path().to_owned() };
        let (nic, disk) = ("0000:00:03.0".parse().unwrap(), "0000:00:04.0".parse().unwrap());
        for address in [nic, disk] {
            let device = bus.device(address);
            fs::create_dir_all(&device).unwrap();
            symlink("../../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
            fs::write(device.join("driver_override"), "(null)\n").unwrap();
            let folder = root.path().join("kernel/iommu_groups/7/devices");
            fs::create_dir_all(&folder).unwrap();
            symlink(&device, folder.join(address.to_string())).unwrap();
        }
        symlink("../../../bus/pci/drivers/e1000", bus.device(nic).join("driver")).unwrap();
        fs::create_dir_all(bus.drivers("e1000")).unwrap();
        assert!(bus.has(nic) && !bus.has("0000:00:05.0".parse().unwrap()));
        assert_eq!((bus.group(nic), bus.members(7)), (Some(7), vec![nic, disk]));
        assert_eq!((bus.driver(nic).as_deref(), bus.driver(disk)), (Some("e1000"), None));
        assert!(bus.has_driver("e1000") && !bus.has_driver("vfio-pci"));
        assert_eq!(bus.only_driver(nic), None);
        bus.set_only_driver(nic, Some("vfio-pci")).unwrap();
        assert_eq!(bus.only_driver(nic).as_deref(), Some("vfio-pci"));
    }

    #[test]
    fn a_command_to_what_is_not_there_makes_no_file() {
        let root = tempfile::tempdir().unwrap();
        let bus = Sysfs { root: root.path().to_owned() };
        fs::create_dir_all(bus.pci()).unwrap();
        assert!(bus.probe("0000:00:03.0".parse().unwrap()).is_err());
        assert!(!bus.pci().join("drivers_probe").exists());
    }
}
