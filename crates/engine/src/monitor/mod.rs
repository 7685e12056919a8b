//! The monitor: the process that owns one sandbox for as long as there is one.
//!
//! ```text
//!            launch             command ends, stop               remove
//!   (order) --------> RUNNING ----------------------> EXITED --------------> (nothing)
//!                        |  \--- STOPPING ---/           ^
//!                        +---- VM lost ------------------+
//! ```
//!
//! Everybody else talks to it over its API ([`api`]); it answers from a run directory that it holds a
//! lock on, so that whoever finds the lock free knows that nobody is there. One task, [`keep`], sees
//! the sandbox from its start to its end; requests only look, or pass something on that tasks of the
//! layers below do to the end. When the sandbox has exited the VM is gone, and the monitor stays to
//! tell how it ended until somebody removes it.

pub mod api;
mod execs;
mod output;
mod routes;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::process::Process;
use crate::progress::OnProgress;
use crate::root::Root;
use crate::sandbox::Sandbox;
use crate::timeline::Timeline;
use crate::update::Update;
use api::{Order, ProcessView, SandboxView, Stage};
use execs::Execs;

/// The socket of the API, in the sandbox's run directory.
pub const API_SOCKET: &str = "api.sock";
/// The socket of the streams.
pub const STDIO_SOCKET: &str = "stdio.sock";
/// What the command wrote.
pub const OUTPUT_FILE: &str = "output.log";

/// What a command that was killed ends with.
const KILLED: u32 = 128 + 9;

/// How long the last output may take after the command has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// What the requests share.
#[derive(Debug)]
struct Monitor {
    view: Mutex<SandboxView>,
    stage: watch::Sender<Stage>,
    exit: watch::Sender<Option<u32>>,
    sandbox: Sandbox,
    init: Arc<Process>,
    execs: Execs,
    /// Somebody wants it stopped: how long its command gets.
    stop: watch::Sender<Option<Duration>>,
    /// Somebody wants it removed.
    remove: CancellationToken,
    /// It is removed: the last answers may go out.
    removed: CancellationToken,
}

/// Runs a sandbox from its order to its removal.
///
/// `ready` is called once, when the command runs and the API answers. `cancel` undoes a launch; later
/// it ends the sandbox as a stop by force and a removal do.
///
/// # Errors
/// What keeps the sandbox from running; nothing is left behind then.
pub async fn run(
    root: &Root,
    order: Order,
    cancel: CancellationToken,
    on_progress: OnProgress,
    ready: impl FnOnce(&SandboxView),
) -> Result<(), Error> {
    let timeline = Timeline::since(std::time::Instant::now());
    let spec = order.sandbox.clone();
    let mut sandbox = Sandbox::launch(root, spec, timeline, cancel.clone(), on_progress).await?;
    let begun = begin(root, &order, &mut sandbox).await;
    let (init, output, api, stdio) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            if let Err(undoing) = sandbox.close().await {
                tracing::error!(error = %undoing, "cannot undo everything");
            }
            return Err(error);
        }
    };
    let view = view_of(&order, &sandbox);
    let monitor = Arc::new(Monitor {
        view: Mutex::new(view.clone()),
        stage: watch::Sender::new(Stage::Running),
        exit: watch::Sender::new(None),
        sandbox,
        init: Arc::new(init),
        execs: Execs::default(),
        stop: watch::Sender::new(None),
        remove: CancellationToken::new(),
        removed: CancellationToken::new(),
    });
    let serving = tokio::spawn(routes::serve(monitor.clone(), api));
    let streaming = tokio::spawn(execs::serve(monitor.clone(), stdio));
    ready(&view);
    let outcome = monitor.keep(order.remove, &cancel, output).await;
    streaming.abort();
    monitor.removed.cancel();
    // Answers that are under way; none takes long.
    let _ = tokio::time::timeout(DRAIN, serving).await;
    outcome
}

type Begun = (Process, output::Recording, UnixListener, UnixListener);

/// Opens the sockets and starts the command.
async fn begin(root: &Root, order: &Order, sandbox: &mut Sandbox) -> Result<Begun, Error> {
    let dir = root.run().join(sandbox.name());
    let api = listen(&dir, API_SOCKET)?;
    let stdio = listen(&dir, STDIO_SOCKET)?;
    let recording = output::Recording::begin(&dir.join(OUTPUT_FILE))?;
    let mut init = sandbox.start(&order.command).await?;
    let recording = recording.record(init.take_stdout(), init.take_stderr());
    Ok((init, recording, api, stdio))
}

/// Binds a socket in the run directory by way of its descriptor: a path may be too long for one.
fn listen(dir: &Path, name: &str) -> Result<UnixListener, Error> {
    use std::os::fd::AsRawFd;
    let failed = |source| Error::Open { path: dir.join(name), source };
    let folder = std::fs::File::open(dir).map_err(failed)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    UnixListener::bind(path).map_err(failed)
}

fn view_of(order: &Order, sandbox: &Sandbox) -> SandboxView {
    let rootfs = match &order.sandbox.rootfs {
        crate::RootFs::BuiltIn => "built-in".to_owned(),
        crate::RootFs::At(path) => path.display().to_string(),
    };
    SandboxView {
        name: sandbox.name().to_owned(),
        state: Stage::Running,
        exit_code: None,
        created: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
        rootfs,
        command: sandbox.command().to_vec(),
        memory_mib: order.sandbox.memory_mib,
        vcpus: order.sandbox.vcpus,
        monitor: ProcessView { pid: std::process::id() },
        vm: Some(ProcessView { pid: sandbox.vm_pid() }),
        networks: sandbox.networks().list(),
        plugs: sandbox.plugs().list(),
    }
}

impl Monitor {
    /// Sees the sandbox to its end.
    async fn keep(
        &self,
        remove_at_exit: bool,
        cancel: &CancellationToken,
        output: output::Recording,
    ) -> Result<(), Error> {
        let (code, ended_by_itself) = self.until_exit(cancel).await;
        if ended_by_itself {
            output.finish(DRAIN).await;
        }
        self.sandbox.container_ended();
        let closed = self.sandbox.power_off().await;
        self.stage.send_replace(Stage::Exited);
        self.exit.send_replace(Some(code));
        if !remove_at_exit && closed.is_ok() {
            tokio::select! {
                () = self.remove.cancelled() => {}
                () = cancel.cancelled() => {}
            }
        }
        closed.and(self.sandbox.release().await)
    }

    /// Waits for the command's end, and brings it about when somebody asks. Says how it ended, and
    /// whether it did before its VM.
    async fn until_exit(&self, cancel: &CancellationToken) -> (u32, bool) {
        const TERM: i32 = 15;
        let mut stop = self.stop.subscribe();
        let mut patience = None;
        loop {
            let expired = async {
                match patience {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = self.init.wait() => match exit {
                    Ok(code) => return (code, true),
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "lost");
                        return (255, false);
                    }
                },
                Ok(()) = stop.changed() => {
                    let Some(limit) = *stop.borrow_and_update() else { continue };
                    self.stage.send_replace(Stage::Stopping);
                    patience = Some(tokio::time::Instant::now() + limit);
                    if let Err(error) = self.init.signal(TERM).await {
                        tracing::warn!(%error, "cannot ask the command to end");
                    }
                }
                () = expired => {
                    patience = None;
                    if let Err(error) = self.init.kill().await {
                        tracing::warn!(%error, "cannot kill the command");
                        return (255, false);
                    }
                }
                () = self.remove.cancelled() => return (KILLED, false),
                () = cancel.cancelled() => return (KILLED, false),
            }
        }
    }

    /// The sandbox, if its VM is up, paused or not.
    fn alive(&self) -> Result<&Sandbox, Error> {
        match *self.stage.borrow() {
            Stage::Running | Stage::Paused | Stage::Stopping => Ok(&self.sandbox),
            Stage::Exited => Err(Error::NotRunning { name: self.view().name }),
        }
    }

    /// The sandbox, if its guest can be asked.
    fn live(&self) -> Result<&Sandbox, Error> {
        match *self.stage.borrow() {
            Stage::Running | Stage::Stopping => Ok(&self.sandbox),
            Stage::Paused => Err(Error::Paused { name: self.sandbox.name().to_owned() }),
            Stage::Exited => Err(Error::NotRunning { name: self.sandbox.name().to_owned() }),
        }
    }

    fn is_paused(&self) -> bool {
        *self.stage.borrow() == Stage::Paused
    }

    /// Pauses the VM, or lets it go on. One that is being stopped is not paused any more.
    async fn set_paused(&self, paused: bool) -> Result<(), Error> {
        let sandbox = self.alive()?;
        if *self.stage.borrow() == Stage::Stopping {
            return Err(Error::NotRunning { name: sandbox.name().to_owned() });
        }
        sandbox.set_paused(paused).await?;
        self.stage.send_if_modified(|stage| {
            let next = match (*stage, paused) {
                (Stage::Running, true) => Stage::Paused,
                (Stage::Paused, false) => Stage::Running,
                (Stage::Running | Stage::Paused | Stage::Stopping | Stage::Exited, _) => *stage,
            };
            std::mem::replace(stage, next) != next
        });
        Ok(())
    }

    async fn update(&self, update: &Update) -> Result<(), Error> {
        let updated = self.live()?.update(update).await;
        // What came before a failure stays done.
        let (vm, mut view) =
            (self.sandbox.vm(), self.view.lock().unwrap_or_else(PoisonError::into_inner));
        view.vcpus = vm.processor_count();
        view.memory_mib = vm.memory_in_mib();
        updated
    }

    fn view(&self) -> SandboxView {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        view.state = *self.stage.borrow();
        view.exit_code = *self.exit.borrow();
        view.plugs = self.sandbox.plugs().list();
        view.networks = self.sandbox.networks().list();
        if view.state == Stage::Exited {
            view.vm = None;
        }
        view
    }
}
