//! virtio-fs shares, found by the tag the host gave them.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::mount::{Mount, MountError, Mounter};

/// Mounts the share with this tag on `target`, waiting for its device to appear.
pub fn attach(
    mounter: &Mounter,
    tag: &str,
    target: &Path,
    read_only: bool,
    timeout: Duration,
) -> Result<(), MountError> {
    mounter.load_module("virtiofs");
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let share =
        Mount { from: Path::new(tag), target, kind: "virtiofs", flags, data: "", mode: 0o700 };
    let start = Instant::now();
    loop {
        match mounter.mount(&share) {
            // What the driver says as long as no device has the tag.
            Err(MountError::Mount { source: Errno::EINVAL, .. }) if start.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}
