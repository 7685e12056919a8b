//! The task that checks whether a command is well. A monitor that takes over goes on with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Monitor;
use super::api::Command;
use crate::health::{Check, Course, Health};

/// Checks, as often as was asked, until the sandbox is over.
pub(super) async fn watch(monitor: Arc<Monitor>) {
    let (check, known) = monitor.ledger.look(|r| (r.order.health.clone(), r.health));
    let Some(check) = check else { return };
    let began = Instant::now();
    // One that was known to start before was started a while ago.
    let mut course = Course::from(known.unwrap_or(Health::Starting));
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(check.interval.max(1))) => {}
            () = monitor.over.cancelled() => return,
        }
        if monitor.live().is_err() {
            // It stands still, or is about to end.
            continue;
        }
        let before = course.health;
        course = course.after(succeeds(&monitor, &check).await, &check, began.elapsed());
        let health = course.health;
        if health != before {
            tracing::info!(sandbox = monitor.sandbox.name(), health = health.name(), "health");
            let noted = monitor.ledger.update(move |record| record.health = Some(health)).await;
            if let Err(error) = noted {
                tracing::warn!(%error, "cannot write down how well it is");
            }
        }
    }
}

/// One check. What it says is of no interest, and must not hold it up.
async fn succeeds(monitor: &Monitor, check: &Check) -> bool {
    let args = ["sh", "-c", &check.command].map(str::to_owned).to_vec();
    let started = monitor.sandbox.exec(&Command { args, ..Command::default() }).await;
    let mut process = match started {
        Ok(process) => process,
        Err(error) => {
            tracing::debug!(%error, "a health check cannot be started");
            return false;
        }
    };
    monitor.checking.store(process.pid(), Ordering::Relaxed);
    for mut output in [process.take_stdout(), process.take_stderr()].into_iter().flatten() {
        // Ends with the process.
        tokio::spawn(async move { tokio::io::copy(&mut output, &mut tokio::io::sink()).await });
    }
    let limit = Duration::from_secs(check.timeout.max(1));
    let code = match tokio::time::timeout(limit, process.wait()).await {
        Ok(code) => code.ok(),
        Err(_) => {
            if let Err(error) = process.kill().await {
                tracing::warn!(%error, "a health check does not end");
            }
            // It ends now, and the guest is to forget it.
            let _ = tokio::time::timeout(limit, process.wait()).await;
            None
        }
    };
    process.forget().await;
    monitor.checking.store(0, Ordering::Relaxed);
    code == Some(0)
}
