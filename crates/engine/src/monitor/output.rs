//! What the command of a detached sandbox writes goes to a file, so that it never waits for a reader.
//!
//! The file is bounded: when it has grown to [`LIMIT`] it becomes `output.log.1`, in the place of the
//! one before, and a new one begins.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::process::Output;

/// The largest a file gets, in bytes.
const LIMIT: u64 = 8 << 20;

/// The streams on their way to the file.
#[derive(Debug)]
pub(super) struct Recording {
    sink: Arc<Mutex<Sink>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Recording {
    /// Makes the file.
    pub(super) fn begin(path: &Path) -> Result<Self, Error> {
        let file = create(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let sink = Sink { path: path.to_owned(), file, written: 0 };
        Ok(Self { sink: Arc::new(Mutex::new(sink)), tasks: Vec::new() })
    }

    /// Begins to record. The tasks end with their streams.
    pub(super) fn record(mut self, stdout: Option<Output>, stderr: Option<Output>) -> Self {
        for stream in [stdout, stderr].into_iter().flatten() {
            self.tasks.push(tokio::spawn(copy(stream, self.sink.clone())));
        }
        self
    }

    /// Waits for the streams' end, at most for `limit`.
    pub(super) async fn finish(self, limit: Duration) {
        for mut task in self.tasks {
            if tokio::time::timeout(limit, &mut task).await.is_err() {
                tracing::warn!("the command's output did not end with it; the rest is lost");
                task.abort();
            }
        }
    }
}

async fn copy(mut from: Output, sink: Arc<Mutex<Sink>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let written = sink.lock().unwrap_or_else(PoisonError::into_inner).write(&buffer[..count]);
        if let Err(error) = written {
            // The command must not suffer for a full disk.
            tracing::warn!(%error, "cannot record the command's output");
        }
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.written >= LIMIT {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            self.file = create(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        self.written += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_bounded_and_the_end_of_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output.log");
        let recording = Recording::begin(&path).unwrap();
        let mut sink = recording.sink.lock().unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            sink.write(&chunk).unwrap();
        }
        sink.write(b"the end").unwrap();
        let sizes: u64 = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 2 * LIMIT + chunk.len() as u64, "{sizes}");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("the end"));
    }
}
