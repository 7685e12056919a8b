//! Types of the seed's API that come from elsewhere in hcsshim.

mod statistics;

pub use statistics::{
    ProcessorStatistics, VirtualMachineMemory, VirtualMachineMemoryStatistics,
    VirtualMachineStatistics,
};
