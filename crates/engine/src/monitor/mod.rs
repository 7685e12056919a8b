//! The monitor: the process that owns one sandbox for as long as it runs.
//!
//! ```text
//!             (order)                      (its monitor died)
//!                │ launch                        │ recovery
//!                ▼                               ▼
//!            RUNNING ◄────────────────────── adopt, or bury, undo, finish, remove
//!                │ command ends, stop, VM lost
//!                ▼
//!            EXITED: written down, the VM and all it held are gone, and the monitor with them
//! ```
//!
//! Everybody else talks to it over its API ([`api`]); it answers from a run directory that it holds a
//! lock on, so that whoever finds the lock free knows that nobody is there. One task, [`Monitor::keep`],
//! sees the sandbox from its start to its end; requests only look, or pass something on that tasks of
//! the layers below do to the end.
//!
//! It is made to be killed. Whatever it has to remember is in the ledger before it acts, the VM and its
//! servers are processes of their own, and what a new monitor does is what any monitor does that finds
//! its sandbox running. So there is one way back for everything: a monitor that loses its connection
//! to the guest, or is asked to make way for a new version, becomes a fresh one ([`Ended::Again`]).

mod adopt;
mod again;
pub mod api;
mod containers;
mod drift;
mod execs;
mod health;
mod input;
mod keep;
mod output;
mod routes;
pub mod streams;
mod verbs;
mod wake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::ledger::Ledger;
use crate::life::Stage;
use crate::logs::{Limits, Log, Stream, WhenFull};
use crate::process::Process;
use crate::progress::OnProgress;
use crate::record::SandboxRecord;
use crate::recover;
use crate::root::Root;
use crate::run_dir::RunDir;
use crate::sandbox::{Launch, Sandbox, sweep_all};
use crate::timeline::Timeline;
pub use adopt::adopt;
pub use again::start;
use api::{Order, SandboxView};
use containers::Containers;
use execs::Execs;
use input::InputDesk;
pub use wake::{spawn, wake};

/// The socket of the API, in the sandbox's run directory.
pub const API_SOCKET: &str = "api.sock";
/// The socket of the streams.
pub const STDIO_SOCKET: &str = "stdio.sock";

/// What a command ends with of which nobody knows how it ended.
const UNKNOWN: u32 = 255;

/// How long the last output may take after the command has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// A monitor that lived no longer makes its successor wait so long: what ended it may end that one too.
const SOON: Duration = Duration::from_millis(500);

/// How a monitor came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There is nothing to look after any more, or somebody else does.
    Over,
    /// The sandbox runs on and needs a monitor: this process is to become a fresh one.
    Again,
}

/// What the requests share.
#[derive(Debug)]
struct Monitor {
    root: Root,
    ledger: Ledger,
    stage: watch::Sender<Stage>,
    exit: watch::Sender<Option<u32>>,
    sandbox: Sandbox,
    init: Arc<Process>,
    /// Its command's input.
    input: InputDesk,
    execs: Execs,
    containers: Containers,
    /// The process in the guest of the health check that runs; 0: none does.
    checking: AtomicU32,
    /// Somebody wants it stopped: how long its command gets.
    stop: watch::Sender<Option<Duration>>,
    /// Somebody wants it removed.
    remove: CancellationToken,
    /// Its VM is about to go, and all that is in it.
    ending: CancellationToken,
    /// It is over: the last answers may go out.
    over: CancellationToken,
}

/// What a sandbox that runs has, whoever started it.
struct Running {
    sandbox: Sandbox,
    init: Process,
    ledger: Ledger,
    log: Log,
    api: UnixListener,
    stdio: UnixListener,
}

/// Runs a sandbox from its order to its end.
///
/// `ready` is called once, when the command runs and the API answers. `cancel` undoes a launch; later
/// it makes way for a fresh monitor.
///
/// # Errors
/// What keeps the sandbox from running; nothing is left behind then.
pub async fn run(
    root: &Root,
    order: Order,
    cancel: CancellationToken,
    on_progress: OnProgress,
    ready: impl FnOnce(&SandboxView),
) -> Result<Ended, Error> {
    let name = order.sandbox.name.clone().unwrap_or_default();
    order.sandbox.check()?;
    if root.state(&name).exists() {
        return Err(Error::Exists { name });
    }
    sweep_all(root).await;
    let room = |source| Error::Room { name: name.clone(), source };
    let run_dir = RunDir::create(root.run(), &name).map_err(room)?;
    let ledger = match Ledger::begin(root, SandboxRecord::creating(&name, order.clone())) {
        Ok(ledger) => ledger,
        Err(error) => {
            run_dir.remove().map_err(room)?;
            return Err(error);
        }
    };
    let launched = launch(root, &name, &order, run_dir, &ledger, cancel.clone(), on_progress).await;
    let running = match launched {
        Ok(running) => running,
        Err(error) => {
            // Nobody was told of it.
            if let Err(undoing) = recover::forget(root, &name) {
                tracing::error!(error = %undoing, "cannot undo everything");
            }
            return Err(error);
        }
    };
    ready(&ledger.look(SandboxRecord::view));
    let ended = attend(root, running, cancel.clone()).await?;
    again::follow(root, &name, ended, cancel).await
}

/// The OpenAPI document of what every monitor answers.
///
/// # Errors
/// It cannot be written as JSON, which would be a fault of ours.
pub fn openapi() -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(routes::document())
}

/// Whether a sandbox that has ended is to be started again, now that somebody looks.
pub(crate) fn is_restart_due(record: &SandboxRecord) -> bool {
    again::is_due(record, !record.is_of_this_boot())
}

/// Writes a sandbox down that is to be started later.
///
/// # Errors
/// The name is taken; it cannot be written.
pub fn create(root: &Root, order: Order) -> Result<SandboxView, Error> {
    order.sandbox.check()?;
    let name = order.sandbox.name.clone().unwrap_or_default();
    let mut record = SandboxRecord::creating(&name, order);
    (record.stage, record.is_kept, record.monitor) = (Stage::Created, true, None);
    Ledger::begin(root, record.clone())?;
    Ok(record.view())
}

async fn launch(
    root: &Root,
    name: &str,
    order: &Order,
    run_dir: RunDir,
    ledger: &Ledger,
    cancel: CancellationToken,
    on_progress: OnProgress,
) -> Result<Running, Error> {
    let timeline = Timeline::since(std::time::Instant::now());
    let launch = Launch {
        root,
        name: name.to_owned(),
        spec: order.sandbox.clone(),
        cancel,
        ledger: Some(ledger.clone()),
    };
    let mut sandbox = Sandbox::launch_in(launch, run_dir, timeline, on_progress).await?;
    let begun = begin(root, order, &mut sandbox, ledger).await;
    match begun {
        Ok((init, log, api, stdio)) => {
            Ok(Running { sandbox, init, ledger: ledger.clone(), log, api, stdio })
        }
        Err(error) => {
            if let Err(undoing) = sandbox.close().await {
                tracing::error!(error = %undoing, "cannot undo everything");
            }
            Err(error)
        }
    }
}

/// Opens the sockets and the log, starts the command, and writes down that it runs.
async fn begin(
    root: &Root,
    order: &Order,
    sandbox: &mut Sandbox,
    ledger: &Ledger,
) -> Result<(Process, Log, UnixListener, UnixListener), Error> {
    let dir = root.run().join(sandbox.name());
    let api = listen(&dir, API_SOCKET)?;
    let stdio = listen(&dir, STDIO_SOCKET)?;
    let log = open_log(root, sandbox.name(), None, order.log, order.when_full)?;
    let init = sandbox.start(&order.command).await?;
    let (pid, image) = (init.pid(), sandbox.image().clone());
    let log_base = [log.end(Stream::Stdout), log.end(Stream::Stderr)];
    let runs = move |record: &mut SandboxRecord| {
        record.image = image;
        record.stage = Stage::Running;
        if let Some(container) = &mut record.container {
            container.pid = Some(pid);
            container.log_base = log_base;
        }
    };
    ledger.update(runs).await?;
    Ok((init, log, api, stdio))
}

/// Where what a log has no room for is kept. No container has its sandbox's name.
fn spilled(root: &Root, sandbox: &str, name: &str) -> PathBuf {
    root.run().join(sandbox).join("spilled").join(name)
}

/// The log of a sandbox's own command, or of a further container's.
fn open_log(
    root: &Root,
    sandbox: &str,
    container: Option<&str>,
    limits: Limits,
    when_full: WhenFull,
) -> Result<Log, Error> {
    let (folder, name) = match container {
        None => (root.logs(sandbox), sandbox),
        Some(name) => (root.container_logs(sandbox, name), name),
    };
    let opened = Log::open(&folder, limits, spilled(root, sandbox, name), when_full);
    opened.map_err(|source| Error::Log { name: name.to_owned(), source })
}

/// Binds a socket in the run directory by way of its descriptor: a path may be too long for one. What
/// a dead monitor left in its place is replaced: the directory's lock is ours.
fn listen(dir: &Path, name: &str) -> Result<UnixListener, Error> {
    use std::os::fd::AsRawFd;
    let failed = |source| Error::Open { path: dir.join(name), source };
    let folder = std::fs::File::open(dir).map_err(failed)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path).map_err(failed)
}

/// Serves the API and sees the sandbox to its end.
async fn attend(root: &Root, running: Running, cancel: CancellationToken) -> Result<Ended, Error> {
    let Running { sandbox, mut init, ledger, log, api, stdio } = running;
    let (stage, patience, when_full) =
        ledger.look(|record| (record.stage, record.patience, record.order.when_full));
    let stopping = (stage == Stage::Stopping).then(|| Duration::from_secs(patience.unwrap_or(0)));
    let base = ledger.look(|record| record.container.as_ref().map_or([0, 0], |c| c.log_base));
    let outputs = [init.take_stdout(), init.take_stderr()];
    let recording = output::Recording::begin(log, base, when_full, outputs);
    let input = InputDesk::of(init.take_stdin());
    let monitor = Arc::new(Monitor {
        root: root.clone(),
        ledger,
        stage: watch::Sender::new(stage),
        exit: watch::Sender::new(None),
        sandbox,
        init: Arc::new(init),
        input,
        execs: Execs::default(),
        containers: Containers::default(),
        checking: AtomicU32::new(0),
        stop: watch::Sender::new(stopping),
        remove: CancellationToken::new(),
        ending: CancellationToken::new(),
        over: CancellationToken::new(),
    });
    let known = execs::Known::read(&monitor, root);
    containers::adopt(&monitor, &known).await;
    execs::adopt(&monitor, &known).await;
    if stage == Stage::Paused {
        // It had to go on to be taken over.
        monitor.sandbox.set_paused(true).await?;
    }
    let serving = tokio::spawn(routes::serve(monitor.clone(), api));
    let streaming = tokio::spawn(execs::serve(monitor.clone(), stdio));
    let checking = tokio::spawn(health::watch(monitor.clone()));
    let began = std::time::Instant::now();
    let outcome = monitor.keep(root, &cancel, recording).await;
    streaming.abort();
    checking.abort();
    monitor.over.cancel();
    if !matches!(outcome, Ok(Ended::Again)) {
        // Answers that are under way; none takes long.
        let _ = tokio::time::timeout(DRAIN, serving).await;
    } else if began.elapsed() < SOON {
        tokio::time::sleep(SOON).await;
    }
    outcome
}
