//! What a device's path says. Pure, but for the look at a device's virtual functions.

use std::path::{Path, PathBuf};

use coracle_vmm::PciAddress;

use super::error::VpciError;
use crate::schema::VirtualPciDevice;

/// What stands behind a device that is assigned; its text is the device's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(crate) enum Source {
    /// A function of the host.
    Host(PciAddress),
    /// A mediated device, by its folder in sysfs.
    Mediated(PathBuf),
    /// QEMU's `edu`.
    Teaching,
    /// A vhost-user-blk server's socket.
    Disk(PathBuf),
    /// A vhost-user-scsi server's socket.
    Controller(PathBuf),
}

/// The kinds that are named before a colon.
const TEACHING: &str = "emulated:edu";
const DISK: &str = "vhost-user-blk:";
const CONTROLLER: &str = "vhost-user-scsi:";

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::Mediated(folder) => folder.display().fmt(f),
            Self::Teaching => f.write_str(TEACHING),
            Self::Disk(socket) => write!(f, "{DISK}{}", socket.display()),
            Self::Controller(socket) => write!(f, "{CONTROLLER}{}", socket.display()),
        }
    }
}

impl Source {
    /// Reads what is to be assigned. A virtual function is looked up below `pci`, the folder of the
    /// bus in sysfs.
    pub(crate) fn of(device: &VirtualPciDevice, pci: &Path) -> Result<Self, VpciError> {
        let [function] = device.functions.as_slice() else {
            return Err(VpciError::Functions { count: device.functions.len() });
        };
        let whole = Self::parse(&function.device_instance_path)?;
        match (whole, function.virtual_function) {
            (whole, 0) => Ok(whole),
            (Self::Host(parent), number) => {
                // virtfn0 is the first.
                let link = pci.join(format!("devices/{parent}/virtfn{}", number - 1));
                let target = std::fs::read_link(&link).ok();
                let name = target.as_deref().and_then(Path::file_name).and_then(|n| n.to_str());
                let found = name.and_then(|name| name.parse().ok());
                found.map(Self::Host).ok_or(VpciError::NoVirtualFunction { parent, number })
            }
            (other, number) => Err(VpciError::NotVirtual { device: other.to_string(), number }),
        }
    }

    fn parse(path: &str) -> Result<Self, VpciError> {
        let unknown = || VpciError::Path { path: path.to_owned() };
        let socket = |text: &str| {
            let is_whole = text.starts_with('/');
            is_whole.then(|| PathBuf::from(text)).ok_or_else(unknown)
        };
        if path == TEACHING {
            return Ok(Self::Teaching);
        }
        if let Some(text) = path.strip_prefix(DISK) {
            return socket(text).map(Self::Disk);
        }
        if let Some(text) = path.strip_prefix(CONTROLLER) {
            return socket(text).map(Self::Controller);
        }
        if path.starts_with("/sys/") {
            return Ok(Self::Mediated(path.into()));
        }
        path.parse().map(Self::Host).map_err(|_| unknown())
    }

    /// Whether the guest's memory is pinned for it.
    pub(crate) fn pins_memory(&self) -> bool {
        match self {
            Self::Host(_) | Self::Mediated(_) => true,
            Self::Teaching | Self::Disk(_) | Self::Controller(_) => false,
        }
    }

    /// Whether another process works in the guest's memory for it.
    pub(crate) fn shares_memory(&self) -> bool {
        match self {
            Self::Disk(_) | Self::Controller(_) => true,
            Self::Host(_) | Self::Mediated(_) | Self::Teaching => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::schema::VirtualPciFunction;

    fn read(path: &str) -> Result<Source, VpciError> {
        Source::of(&VirtualPciDevice::at(path), Path::new("/nowhere"))
    }

    #[test]
    fn every_form_of_a_path_is_read_back_as_it_is_written() {
        for path in [
            "0000:3b:00.0",
            "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
            "emulated:edu",
            "vhost-user-blk:/run/disk.sock",
            "vhost-user-scsi:/run/disk.sock",
        ] {
            assert_eq!(read(path).unwrap().to_string(), path);
        }
        assert_eq!(read("3b:00.0").unwrap().to_string(), "0000:3b:00.0");
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        for path in ["", "eth0", "emulated:e1000", "vhost-user-blk:disk.sock", "PCI\\VEN_10DE"] {
            let error = read(path).unwrap_err();
            assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
        }
    }

    #[test]
    fn one_function_is_assigned_at_a_time() {
        let none = VirtualPciDevice::default();
        let error = Source::of(&none, Path::new("/")).unwrap_err();
        assert!(matches!(error, VpciError::Functions { count: 0 }), "{error}");
    }

    #[test]
    fn a_virtual_function_is_found_by_its_number_from_1() {
        let pci = tempfile::tempdir().unwrap();
        let device = pci.path().join("devices/0000:01:00.0");
        std::fs::create_dir_all(&device).unwrap();
        symlink("../0000:01:10.0", device.join("virtfn0")).unwrap();
        let function = |virtual_function| VirtualPciDevice {
            functions: vec![VirtualPciFunction {
                device_instance_path: "0000:01:00.0".into(),
                virtual_function,
            }],
        };
        let first = Source::of(&function(1), pci.path()).unwrap();
        assert_eq!(first.to_string(), "0000:01:10.0");
        let error = Source::of(&function(2), pci.path()).unwrap_err();
        assert!(matches!(error, VpciError::NoVirtualFunction { number: 2, .. }), "{error}");
    }
}
