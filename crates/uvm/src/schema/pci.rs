//! A PCI device as hcsshim's host schema names one.

use serde::{Deserialize, Serialize};

/// A PCI device to assign: one function of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VirtualPciDevice {
    /// Its functions; exactly one can be assigned at a time.
    pub functions: Vec<VirtualPciFunction>,
}

/// One function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VirtualPciFunction {
    /// Which device of the host; see [`crate::vpci`] for the forms on Linux.
    pub device_instance_path: String,
    /// 0 is the device itself, n its n-th SR-IOV virtual function.
    pub virtual_function: u16,
}

impl VirtualPciDevice {
    /// The device at `path` itself.
    pub fn at(path: impl Into<String>) -> Self {
        let function =
            VirtualPciFunction { device_instance_path: path.into(), virtual_function: 0 };
        Self { functions: vec![function] }
    }
}
