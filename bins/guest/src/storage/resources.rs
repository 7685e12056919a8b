//! Processors and memory that come and go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mount::Mounter;

/// Why the guest cannot use what it was given.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// They did not all appear.
    #[error("there are {there} of {wanted} processors after {} s", timeout.as_secs())]
    Missing {
        /// How many there are.
        there: usize,
        /// How many are wanted.
        wanted: usize,
        /// How long we waited.
        timeout: Duration,
    },
    /// The kernel refuses.
    #[error("writing {}", path.display())]
    Refused {
        /// The file in sysfs.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

const CPUS: &str = "/sys/devices/system/cpu";
const AUTO_ONLINE: &str = "/sys/devices/system/memory/auto_online_blocks";

/// Takes the first `wanted` processors online and all others offline.
pub fn set_processors(wanted: u32, timeout: Duration) -> Result<(), ResourceError> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let start = Instant::now();
    let all = loop {
        let all = processors(Path::new(CPUS));
        if all.len() >= wanted {
            break all;
        }
        if start.elapsed() > timeout {
            return Err(ResourceError::Missing { there: all.len(), wanted, timeout });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    for (n, folder) in all.iter().enumerate() {
        let online = if n < wanted { "1" } else { "0" };
        let path = folder.join("online");
        // The first processor of most machines cannot go, and has no such file.
        let Ok(now) = fs::read_to_string(&path) else { continue };
        if now.trim() != online {
            fs::write(&path, online)
                .map_err(|source| ResourceError::Refused { path: path.clone(), source })?;
        }
    }
    Ok(())
}

/// The folders of all processors, in the order of their numbers.
fn processors(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix("cpu")?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Loads the driver of memory that comes and goes. New blocks are used at once, for what can be moved,
/// so that they can be given back.
pub fn prepare_memory(mounter: &Mounter) -> Result<(), ResourceError> {
    let path = PathBuf::from(AUTO_ONLINE);
    fs::write(&path, "online_movable").map_err(|source| ResourceError::Refused { path, source })?;
    mounter.load_module("virtio_mem");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_ordered_by_number_and_nothing_else_is_one() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cpu10", "cpu2", "cpu0", "cpufreq", "online", "cpuidle"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names: Vec<_> = processors(folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["cpu0", "cpu2", "cpu10"]);
    }
}
