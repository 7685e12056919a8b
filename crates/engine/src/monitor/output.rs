//! What the command of a detached sandbox writes goes to its log, so that it never waits for a reader.
//!
//! A piece is read, written down, and only then acknowledged, by the next read: what the log has not
//! got, the guest still has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::logs::{Log, Stream, WhenFull};
use crate::process::Output;

/// How often it is tried to bring to the log what it had no room for.
const DRAIN: Duration = Duration::from_secs(1);

/// How long to wait until the disk is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// The streams on their way to the log.
#[derive(Debug)]
pub(super) struct Recording {
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
    /// Tries again to bring to the log what it had no room for.
    draining: JoinHandle<()>,
}

impl Recording {
    /// Begins to record the outputs of a command whose streams begin at `base` in the log. The tasks
    /// end with their streams.
    pub(super) fn begin(
        log: Log,
        base: [u64; 2],
        when_full: WhenFull,
        outputs: [Option<Output>; 2],
    ) -> Self {
        let log = Arc::new(Mutex::new(log));
        let streams = [Stream::Stdout, Stream::Stderr].into_iter().zip(base).zip(outputs);
        let record = |((stream, base), output): ((Stream, u64), Option<Output>)| {
            Some(tokio::spawn(copy(output?, stream, base, log.clone(), when_full)))
        };
        let tasks = streams.filter_map(record).collect();
        let draining = tokio::spawn(drain_for_ever(log.clone()));
        Self { log, tasks, draining }
    }

    /// Waits for the streams' end, at most for `limit`.
    pub(super) async fn finish(&mut self, limit: Duration) {
        for mut task in self.tasks.drain(..) {
            if tokio::time::timeout(limit, &mut task).await.is_err() {
                tracing::warn!("the command's output did not end with it; the rest is lost");
                task.abort();
            }
        }
    }

    /// Brings the last of it to the log, at most for `limit`: what is not there then is lost.
    pub(super) async fn settle(self, limit: Duration) {
        let until = tokio::time::Instant::now() + limit;
        while !locked(&self.log).drain() {
            if tokio::time::Instant::now() > until {
                return tracing::error!("the log has no room; what was spilled is lost");
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.draining.abort();
    }
}

/// Ends only by being aborted.
async fn drain_for_ever(log: Arc<Mutex<Log>>) {
    loop {
        tokio::time::sleep(DRAIN).await;
        locked(&log).drain();
    }
}

fn locked(log: &Mutex<Log>) -> std::sync::MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn copy(
    mut from: Output,
    stream: Stream,
    base: u64,
    log: Arc<Mutex<Log>>,
    when_full: WhenFull,
) {
    let locked = || locked(&log);
    let mut buffer = vec![0; 64 * 1024];
    // What the guest had to drop, and what we could not keep.
    let mut missing = (base + from.offset()).saturating_sub(locked().end(stream));
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                // Whoever takes over reads on where the log ends.
                tracing::debug!(%error, "a stream of the command was cut off");
                return;
            }
        };
        loop {
            let written = write(&mut locked(), stream, &mut missing, &buffer[..count]);
            let Err(error) = written else { break };
            tracing::warn!(%error, "cannot keep the command's output");
            if when_full == WhenFull::Drop {
                missing += count as u64;
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
    }
    if missing > 0
        && let Err(error) = locked().skip(stream, missing)
    {
        tracing::warn!(%error, missing, "cannot tell of a gap in the command's output");
    }
}

fn write(log: &mut Log, stream: Stream, missing: &mut u64, bytes: &[u8]) -> std::io::Result<()> {
    if *missing > 0 {
        log.skip(stream, *missing)?;
        *missing = 0;
    }
    log.append(stream, bytes)
}
