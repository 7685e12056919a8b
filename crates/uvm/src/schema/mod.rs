//! Types of the seed's API that come from elsewhere in hcsshim.

mod endpoint;
mod pci;
mod statistics;

pub use endpoint::{HnsEndpoint, HnsNamespace};
pub use pci::{VirtualPciDevice, VirtualPciFunction};
pub use statistics::{
    ProcessorStatistics, VirtualMachineMemory, VirtualMachineMemoryStatistics,
    VirtualMachineStatistics,
};
