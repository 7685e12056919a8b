//! Between our standard streams and the container's.
//!
//! Input comes from a thread of its own, for a read of standard input can be neither
//! polled in general nor cancelled; it ends with the process. Output is written by
//! blocking writes in order, so that a slow reader slows the workload and nothing piles up.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::detach::DetachKeys;

const BUFFER: usize = 64 * 1024;

/// Runs what passes streams through, and leaves the terminal as it was.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(work);
    // A thread may still sit in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    crate::terminal::restore();
    outcome
}

/// The way in.
#[derive(Debug)]
pub struct InputPump {
    detached: Arc<Notify>,
}

impl InputPump {
    /// Returns when the user typed the detach keys.
    pub async fn detached(&mut self) {
        self.detached.notified().await;
    }
}

/// Begins to pass standard input on; nothing without a place to put it.
pub fn pump_stdin<W>(into: Option<W>, keys: Option<DetachKeys>) -> InputPump
where
    W: AsyncWrite + Unpin + Send + 'static,
{
    let detached = Arc::new(Notify::new());
    if let Some(into) = into {
        let (sender, receiver) = mpsc::channel(4);
        std::thread::spawn(move || read_stdin(&sender));
        tokio::spawn(pass_input(receiver, into, keys, detached.clone()));
    }
    InputPump { detached }
}

fn read_stdin(sender: &mpsc::Sender<Vec<u8>>) {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; BUFFER];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if sender.blocking_send(buffer[..n].to_vec()).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

async fn pass_input(
    mut from: mpsc::Receiver<Vec<u8>>,
    mut into: impl AsyncWrite + Unpin,
    mut keys: Option<DetachKeys>,
    detached: Arc<Notify>,
) {
    while let Some(bytes) = from.recv().await {
        let (bytes, leave) = match &mut keys {
            Some(keys) => keys.filter(&bytes),
            None => (bytes, false),
        };
        // The command may have closed its input; what is typed then is lost, as in a pipe.
        if into.write_all(&bytes).await.is_err() || into.flush().await.is_err() {
            return;
        }
        if leave {
            detached.notify_one();
            // The container keeps its input open: nobody said that it is over.
            std::future::pending::<()>().await;
        }
    }
    let _ = into.shutdown().await;
}

/// How the output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was written.
    Whole,
    /// It did not end in time.
    TimedOut,
}

/// The way out.
#[derive(Debug)]
pub struct OutputPump {
    tasks: Vec<JoinHandle<()>>,
    first_byte: Arc<OnceLock<Instant>>,
    broken: Arc<Notify>,
    discard: watch::Sender<bool>,
}

/// Begins to write the container's output to ours.
pub fn pump_output<R>(stdout: Option<R>, stderr: Option<R>) -> OutputPump
where
    R: AsyncRead + Unpin + Send + 'static,
{
    let first_byte = Arc::new(OnceLock::new());
    let broken = Arc::new(Notify::new());
    let (discard, discarding) = watch::channel(false);
    let mut tasks = Vec::new();
    if let Some(from) = stdout {
        let copy = Copy {
            first_byte: first_byte.clone(),
            broken: broken.clone(),
            discard: discarding.clone(),
        };
        tasks.push(tokio::spawn(copy.run(from, tokio::io::stdout())));
    }
    if let Some(from) = stderr {
        let copy =
            Copy { first_byte: first_byte.clone(), broken: broken.clone(), discard: discarding };
        tasks.push(tokio::spawn(copy.run(from, tokio::io::stderr())));
    }
    OutputPump { tasks, first_byte, broken, discard }
}

impl OutputPump {
    /// Returns when nobody reads our output any more.
    pub async fn broken(&mut self) {
        self.broken.notified().await;
    }

    /// From now on output is read and thrown away.
    pub fn discard(&mut self) {
        let _ = self.discard.send(true);
    }

    /// When the first byte came.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }

    /// Waits until all output is written, at most for `limit`.
    pub async fn finish(&mut self, limit: Duration) -> Ending {
        let all = async {
            for task in self.tasks.drain(..) {
                // A task that panicked has nothing more to write.
                let _ = task.await;
            }
        };
        match tokio::time::timeout(limit, all).await {
            Ok(()) => Ending::Whole,
            Err(_) => Ending::TimedOut,
        }
    }
}

struct Copy {
    first_byte: Arc<OnceLock<Instant>>,
    broken: Arc<Notify>,
    discard: watch::Receiver<bool>,
}

impl Copy {
    async fn run(self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut buffer = vec![0; BUFFER];
        let mut is_broken = false;
        loop {
            let n = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            self.first_byte.get_or_init(Instant::now);
            if is_broken || *self.discard.borrow() {
                continue;
            }
            let written = async {
                to.write_all(&buffer[..n]).await?;
                to.flush().await
            };
            if written.await.is_err() {
                is_broken = true;
                self.broken.notify_one();
            }
        }
    }
}
