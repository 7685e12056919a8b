//! A VM whose process and owner are both gone, and what it still holds of the host.

use std::time::Duration;

use coracle_vmm::cgroup;
use coracle_vmm::process::{Process, ProcessIdentity};

use crate::errors::{Result, UvmError};
use crate::record::VmRecord;
use crate::vpci;

/// Ends what is left of a VM as its record has it: the process itself if it lives, its control group,
/// and devices of the host that it was given. Its folder is the caller's to remove. Can be repeated.
///
/// `same_boot` says whether the record is of this boot of the host: if not, no process is meant.
///
/// # Errors
/// The process does not end within `limit`; a device is not given back.
pub async fn bury(record: &VmRecord, same_boot: bool, limit: Duration) -> Result<()> {
    let identity = &record.identity;
    let alive = || UvmError::StillAlive { id: record.id.clone() };
    if same_boot {
        let process = ProcessIdentity { pid: identity.pid, start_time: identity.start_time };
        let others = record.keeper.into_iter().chain(record.vsock_server());
        for identity in std::iter::once(process).chain(others).chain(record.servers()) {
            let Ok(Some(process)) = Process::find(&identity) else { continue };
            process.kill().map_err(|_| alive())?;
            let ended = tokio::time::timeout(limit, process.ended_unreaped()).await;
            ended.map_err(|_| alive())?;
        }
    }
    if let Some(group) = &identity.cgroup
        && let Err(error) = cgroup::remove(group)
    {
        tracing::warn!(group = %group.display(), %error, "a control group stays");
    }
    vpci::give_all_back(&record.vpci).await
}
