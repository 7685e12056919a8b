//! A container's counters, in the shape of cgroup v1.
//!
//! The protocol has containerd's cgroup metrics of version 1 here, field for field. A guest with
//! cgroup v2 fills in what it has; a counter that is not there is zero and is not sent. Sizes are
//! bytes and times nanoseconds, unless said otherwise.

use serde::{Deserialize, Serialize};

/// All counters of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupMetrics {
    /// Huge pages, by page size.
    pub hugetlb: Vec<HugetlbMetrics>,
    /// Number of tasks.
    pub pids: Option<PidsMetrics>,
    /// Processor time.
    pub cpu: Option<CpuMetrics>,
    /// Memory.
    pub memory: Option<MemoryMetrics>,
    /// Block devices.
    pub blkio: Option<BlkIoMetrics>,
    /// RDMA devices.
    pub rdma: Option<RdmaMetrics>,
    /// Network interfaces.
    pub network: Vec<NetworkMetrics>,
    /// Tasks by state.
    pub cgroup_stats: Option<TaskCounts>,
    /// Out-of-memory events.
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugetlbMetrics {
    /// In use.
    pub usage: u64,
    /// Most ever in use.
    pub max: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
    /// The size, such as `2MB`.
    pub pagesize: String,
}

/// Number of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsMetrics {
    /// Now.
    pub current: u64,
    /// Most allowed; 0 is no limit.
    pub limit: u64,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuMetrics {
    /// Time used.
    pub usage: Option<CpuUsage>,
    /// Time withheld.
    pub throttling: Option<Throttling>,
}

/// Time used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// In user space.
    pub user: u64,
    /// By processor.
    pub per_cpu: Vec<u64>,
}

/// Time withheld.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttling {
    /// Periods that passed.
    pub periods: u64,
    /// Periods in which the limit was hit.
    pub throttled_periods: u64,
    /// Time withheld in all.
    pub throttled_time: u64,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryMetrics {
    /// Page cache.
    pub cache: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Anonymous memory in huge pages.
    pub rss_huge: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// Waiting to be written back.
    pub dirty: u64,
    /// Being written back.
    pub writeback: u64,
    /// Pages charged (a count).
    pub pg_pg_in: u64,
    /// Pages uncharged (a count).
    pub pg_pg_out: u64,
    /// Page faults (a count).
    pub pg_fault: u64,
    /// Page faults that read a disk (a count).
    pub pg_maj_fault: u64,
    /// Anonymous, least used.
    pub inactive_anon: u64,
    /// Anonymous, in use.
    pub active_anon: u64,
    /// Files, least used.
    pub inactive_file: u64,
    /// Files, in use.
    pub active_file: u64,
    /// Locked.
    pub unevictable: u64,
    /// Least limit of the cgroup and those above it, memory.
    pub hierarchical_memory_limit: u64,
    /// Least limit of the cgroup and those above it, memory and swap.
    pub hierarchical_swap_limit: u64,
    /// Page cache, children included.
    pub total_cache: u64,
    /// Anonymous memory, children included.
    pub total_rss: u64,
    /// Anonymous memory in huge pages, children included.
    pub total_rss_huge: u64,
    /// Mapped files, children included.
    pub total_mapped_file: u64,
    /// Waiting to be written back, children included.
    pub total_dirty: u64,
    /// Being written back, children included.
    pub total_writeback: u64,
    /// Pages charged (a count), children included.
    pub total_pg_pg_in: u64,
    /// Pages uncharged (a count), children included.
    pub total_pg_pg_out: u64,
    /// Page faults (a count), children included.
    pub total_pg_fault: u64,
    /// Page faults that read a disk (a count), children included.
    pub total_pg_maj_fault: u64,
    /// Anonymous, least used, children included.
    pub total_inactive_anon: u64,
    /// Anonymous, in use, children included.
    pub total_active_anon: u64,
    /// Files, least used, children included.
    pub total_inactive_file: u64,
    /// Files, in use, children included.
    pub total_active_file: u64,
    /// Locked, children included.
    pub total_unevictable: u64,
    /// Memory.
    pub usage: Option<MemoryEntry>,
    /// Memory and swap.
    pub swap: Option<MemoryEntry>,
    /// Kernel memory.
    pub kernel: Option<MemoryEntry>,
    /// TCP buffers.
    pub kernel_tcp: Option<MemoryEntry>,
}

/// One account of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEntry {
    /// Most allowed.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// Most ever in use.
    pub max: u64,
    /// Times the limit was hit.
    pub failcnt: u64,
}

/// Block devices: each list has an entry for each device and operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkIoMetrics {
    /// Bytes moved.
    pub io_service_bytes_recursive: Vec<BlkIoEntry>,
    /// Operations done.
    pub io_serviced_recursive: Vec<BlkIoEntry>,
    /// Operations waiting.
    pub io_queued_recursive: Vec<BlkIoEntry>,
    /// Time in service.
    pub io_service_time_recursive: Vec<BlkIoEntry>,
    /// Time spent waiting.
    pub io_wait_time_recursive: Vec<BlkIoEntry>,
    /// Operations merged.
    pub io_merged_recursive: Vec<BlkIoEntry>,
    /// Time the device was busy for it.
    pub io_time_recursive: Vec<BlkIoEntry>,
    /// Sectors moved.
    pub sectors_recursive: Vec<BlkIoEntry>,
}

/// One counter of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkIoEntry {
    /// `Read`, `Write` and so on.
    pub op: String,
    /// Its name.
    pub device: String,
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// The counter.
    pub value: u64,
}

/// RDMA devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RdmaMetrics {
    /// In use.
    pub current: Vec<RdmaEntry>,
    /// Most allowed.
    pub limit: Vec<RdmaEntry>,
}

/// One RDMA device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RdmaEntry {
    /// Its name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkMetrics {
    /// Its name.
    pub name: String,
    /// Received bytes.
    pub rx_bytes: u64,
    /// Received packets.
    pub rx_packets: u64,
    /// Received with errors.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
    /// Sent packets.
    pub tx_packets: u64,
    /// Sent with errors.
    pub tx_errors: u64,
    /// Sent and dropped.
    pub tx_dropped: u64,
}

/// Tasks by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskCounts {
    /// Sleeping.
    pub nr_sleeping: u64,
    /// Running.
    pub nr_running: u64,
    /// Stopped.
    pub nr_stopped: u64,
    /// Sleeping where no signal reaches.
    pub nr_uninterruptible: u64,
    /// Waiting for a device.
    pub nr_io_wait: u64,
}

/// Out-of-memory events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryOomControl {
    /// 1 when nothing is killed.
    pub oom_kill_disable: u64,
    /// 1 while memory is short.
    pub under_oom: u64,
    /// Processes killed.
    pub oom_kill: u64,
}
