//! Control groups for VM processes.
