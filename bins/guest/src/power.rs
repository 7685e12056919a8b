//! The end of the VM.
//!
//! Gracefully: everything is asked to end, gets a moment, and is killed; then what was written goes
//! to the disks. By force: the disks, and off. Either way the machine is switched off rather than
//! left to a panic, so that the host can tell an orderly end from a crash.

use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use tokio::time::{sleep, timeout};

use crate::storage::mount::mount_points;

/// How long what runs has to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(20);

/// Asks everything to end, then kills, then switches off.
pub async fn off_gracefully() {
    tracing::info!("powering off");
    signal_all(Signal::SIGTERM);
    // What does not end in time is killed.
    drop(timeout(GRACE, until_alone()).await);
    signal_all(Signal::SIGKILL);
    drop(timeout(Duration::from_secs(1), until_alone()).await);
    unmount_all();
    off_now();
}

/// Writes what is in memory to the disks and switches off.
pub fn off_now() {
    sync();
    // Returns only when refused, which cannot happen to PID 1.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    tracing::error!(%error, "the machine cannot be switched off");
}

/// All processes but ourselves.
fn signal_all(signal: Signal) {
    // There may be nobody left.
    let _ = kill(Pid::from_raw(-1), signal);
}

async fn until_alone() {
    while others() > 0 {
        sleep(POLL).await;
    }
}

/// Processes with a program: kernel threads have no executable and are not ours to end.
fn others() -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != 1 && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .count()
}

/// In reverse, so that what is mounted on a mount goes first. What is busy stays; `sync` has to do.
fn unmount_all() {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return };
    let points: Vec<Vec<u8>> = mount_points(&table).collect();
    for point in points.iter().rev() {
        if point.starts_with(b"/run/") {
            let _ = umount2(point.as_slice(), MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}
