//! Processors and memory of a VM that runs.
//!
//! Processors only come: taking one away corrupts QEMU's heap when it emulates them (7.2), so the
//! guest takes them offline instead. Memory comes and goes in a device of its own (virtio-mem): QEMU is
//! told how much is wanted, and the guest gives or takes it block by block, as far as it can.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Shared;
use crate::{
    MiB, VmmError,
    qemu::device as shape,
    qmp::command::{Command, DeviceAdd, QomGet, QomSet, QueryHotpluggableCpus},
};

/// How often it is looked how far the guest has come; QEMU tells at most once a second.
const LOOK: Duration = Duration::from_millis(20);

/// Sees to it that the VM has at least so many virtual processors.
pub(super) async fn add_vcpus(shared: &Shared, wanted: u32) -> Result<(), VmmError> {
    let client = shared.client().await?;
    let all = client.run(QueryHotpluggableCpus {}).await;
    let all = shared.result(QueryHotpluggableCpus::NAME, all)?;
    let there = all.iter().filter(|cpu| cpu.qom_path.is_some()).count();
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if wanted > all.len() {
        let most = u32::try_from(all.len()).unwrap_or(u32::MAX);
        return Err(VmmError::TooManyCpus { most });
    }
    let mut free: Vec<_> = all.into_iter().filter(|cpu| cpu.qom_path.is_none()).collect();
    // In the guest they are numbered as they come; the lowest place first keeps that in order.
    free.sort_by_key(|cpu| cpu.number());
    for cpu in free.into_iter().take(wanted.saturating_sub(there)) {
        shared.effects.announce("cpu.device")?;
        let added = client.run(DeviceAdd(shape::cpu_device(&cpu))).await;
        shared.result(DeviceAdd::NAME, added)?;
    }
    Ok(())
}

/// Asks for so much memory beyond what the VM was made with, and waits until the guest has given or
/// taken it.
pub(super) async fn set_extra_memory(
    shared: &Shared,
    wanted: MiB,
    limit: Duration,
) -> Result<(), VmmError> {
    let client = shared.client().await?;
    let path = format!("/machine/peripheral/{}", shape::EXTRA_MEMORY);
    shared.effects.announce("memory.request")?;
    let request =
        QomSet { path: path.clone(), property: "requested-size", value: wanted.bytes().into() };
    let asked = client.run(request).await;
    shared.result(QomSet::NAME, asked)?;
    let deadline = Instant::now() + limit;
    loop {
        let there = client.run(QomGet { path: path.clone(), property: "size" }).await;
        let there = shared.result(QomGet::NAME, there)?.as_u64().unwrap_or_default();
        if there == wanted.bytes() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(VmmError::MemoryTimeout { wanted, there: MiB(there >> 20), limit });
        }
        sleep(LOOK).await;
    }
}
