//! What a container uses: its processes and its counters.
//!
//! The shape on the wire is that of cgroup v1's metrics, which is what hcsshim's host reads; the
//! guest has cgroup v2, and each number goes where it means the same. What v2 does not count stays
//! zero.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use coracle_bridge::message::{
    BlkIoEntry, BlkIoMetrics, CgroupMetrics, CpuMetrics, CpuUsage, MemoryEntry, MemoryMetrics,
    PidsMetrics, ProcessEntry, Properties, PropertiesQuery, PropertyType, Throttling,
};
use coracle_bridge::server::ServiceError;

use super::containers::Container;

/// Answers `query` about `container`.
pub fn of(container: &Container, query: &PropertiesQuery) -> Result<Properties, ServiceError> {
    let mut properties = Properties::default();
    for kind in &query.property_types {
        if *kind == PropertyType::PROCESS_LIST {
            properties.process_list = processes(&container.cgroup)?;
        } else if *kind == PropertyType::STATISTICS {
            properties.metrics = Some(metrics(&container.cgroup));
        } else {
            return Err(ServiceError::invalid(format!("unknown property type {:?}", kind.0)));
        }
    }
    Ok(properties)
}

fn processes(cgroup: &Path) -> Result<Vec<ProcessEntry>, ServiceError> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).map_err(|error| {
        ServiceError::failed(format!("listing the processes of {}: {error}", cgroup.display()))
    })?;
    Ok(list
        .lines()
        .filter_map(|line| Some(ProcessEntry { process_id: line.parse().ok()? }))
        .collect())
}

fn metrics(cgroup: &Path) -> CgroupMetrics {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    CgroupMetrics {
        pids: Some(PidsMetrics {
            current: number(&read("pids.current")),
            limit: number(&read("pids.max")),
        }),
        cpu: Some(cpu(&table(&read("cpu.stat")))),
        memory: Some(memory(&table(&read("memory.stat")), &read)),
        blkio: Some(block_io(&read("io.stat"))),
        ..CgroupMetrics::default()
    }
}

fn cpu(stat: &HashMap<&str, u64>) -> CpuMetrics {
    let nanoseconds = |name| stat.get(name).copied().unwrap_or(0).saturating_mul(1000);
    CpuMetrics {
        usage: Some(CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CpuUsage::default()
        }),
        throttling: Some(Throttling {
            periods: stat.get("nr_periods").copied().unwrap_or(0),
            throttled_periods: stat.get("nr_throttled").copied().unwrap_or(0),
            throttled_time: nanoseconds("throttled_usec"),
        }),
    }
}

fn memory(stat: &HashMap<&str, u64>, read: &dyn Fn(&str) -> String) -> MemoryMetrics {
    let count = |name| stat.get(name).copied().unwrap_or(0);
    let events = read("memory.events");
    let failures = table(&events).get("max").copied().unwrap_or(0);
    let entry = |usage: &str, limit: &str, max: &str| MemoryEntry {
        usage: number(&read(usage)),
        limit: number(&read(limit)),
        max: number(&read(max)),
        failcnt: failures,
    };
    // v2 always counts the whole subtree.
    MemoryMetrics {
        cache: count("file"),
        rss: count("anon"),
        rss_huge: count("anon_thp"),
        mapped_file: count("file_mapped"),
        dirty: count("file_dirty"),
        writeback: count("file_writeback"),
        pg_fault: count("pgfault"),
        pg_maj_fault: count("pgmajfault"),
        inactive_anon: count("inactive_anon"),
        active_anon: count("active_anon"),
        inactive_file: count("inactive_file"),
        active_file: count("active_file"),
        unevictable: count("unevictable"),
        hierarchical_memory_limit: number(&read("memory.max")),
        hierarchical_swap_limit: number(&read("memory.swap.max")),
        total_cache: count("file"),
        total_rss: count("anon"),
        total_rss_huge: count("anon_thp"),
        total_mapped_file: count("file_mapped"),
        total_dirty: count("file_dirty"),
        total_writeback: count("file_writeback"),
        total_pg_fault: count("pgfault"),
        total_pg_maj_fault: count("pgmajfault"),
        total_inactive_anon: count("inactive_anon"),
        total_active_anon: count("active_anon"),
        total_inactive_file: count("inactive_file"),
        total_active_file: count("active_file"),
        total_unevictable: count("unevictable"),
        usage: Some(entry("memory.current", "memory.max", "memory.peak")),
        swap: Some(entry("memory.swap.current", "memory.swap.max", "memory.swap.peak")),
        ..MemoryMetrics::default()
    }
}

/// `major:minor key=value ...` lines, as entries of one operation each.
fn block_io(stat: &str) -> BlkIoMetrics {
    let mut metrics = BlkIoMetrics::default();
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (entries, op) = match name {
                "rbytes" => (&mut metrics.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut metrics.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut metrics.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut metrics.io_serviced_recursive, "Read"),
                "wios" => (&mut metrics.io_serviced_recursive, "Write"),
                "dios" => (&mut metrics.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            let (op, value) = (op.to_owned(), number(value));
            entries.push(BlkIoEntry { op, major, minor, value, ..BlkIoEntry::default() });
        }
    }
    metrics
}

/// `name value` lines.
fn table(text: &str) -> HashMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name, number(value)))
        .collect()
}

/// A number; `max` is the largest there is, and what is no number is 0.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_counters_go_where_v1_has_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n");
        write("memory.current", "4096\n");
        write("memory.max", "67108864\n");
        write("memory.stat", "anon 1024\nfile 2048\n");
        write("io.stat", "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n");
        let metrics = metrics(directory.path());
        let pids = metrics.pids.unwrap();
        assert_eq!((pids.current, pids.limit), (3, u64::MAX));
        assert_eq!(metrics.cpu.unwrap().usage.unwrap().total, 1_500_000);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.rss, memory.cache), (1024, 2048));
        let usage = memory.usage.unwrap();
        assert_eq!((usage.usage, usage.limit), (4096, 67_108_864));
        let blkio = metrics.blkio.unwrap();
        let read = &blkio.io_service_bytes_recursive[0];
        assert_eq!((read.op.as_str(), read.major, read.minor, read.value), ("Read", 254, 0, 4096));
    }

    #[test]
    fn a_cgroup_that_is_gone_gives_zeros() {
        let metrics = metrics(Path::new("/nonexistent"));
        assert_eq!(metrics.pids.unwrap().current, 0);
    }
}
