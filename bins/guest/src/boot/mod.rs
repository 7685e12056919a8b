//! From the kernel's first jump to the bridge.
//!
//! ```text
//!   early mounts ─▶ parameters ─▶ modules ─▶ root ─▶ late mounts, lo, limits   (no runtime yet)
//!        ─▶ channel ─▶ entropy ─▶ bridge, for ever                               (tokio)
//! ```
//! The bridge is served by this first thread, which goes before every workload; the bytes of workloads
//! have a thread of their own, which does not.
//!
//! Each step that another can do without is allowed to fail with a line in the log: a VM that
//! answers and says what it lacks is worth more than one that is dead. Without mounts, root or
//! channel there is nothing to answer with; then the agent prints why on the console and ends,
//! which the kernel turns into a panic and the host into an exit reason.

pub mod clock;
mod command;
mod entropy;
pub mod modules;
pub mod mounts;
mod root;
mod vsock;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use coracle_bridge::boot::{BootParameters, Transport};
use coracle_bridge::channel::{
    CONTROL_PORT, GuestChannel, PortDevice, STREAMS_PORT, VSOCK_PORT, VirtioPort,
};
use coracle_bridge::port;
use coracle_bridge::server::{Connection, Dial, Guest, GuestOptions, Served};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::sethostname;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::container::launch::Launcher;
use crate::log::Log;
use crate::network;
use crate::power;
use crate::process::program::OwnProgram;
use crate::reaper::Reaper;
use crate::service::Agent;
use crate::storage::mount::Mounter;
use crate::sys;
use modules::{BootList, Modules};
use vsock::VsockPort;

/// Open files a process may have, as a container engine would set it.
const FILES: u64 = 1_048_576;

/// The agent's: workloads that compute must not keep a signal or a question waiting for their next
/// turn to end, which is 4 ms with one processor. Its helpers and all workloads have the usual 0.
const NICENESS: i32 = -10;

/// How long the host may take to send entropy; it is not worth more.
const ENTROPY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the host's port may take to appear.
const KNOCKING: Duration = Duration::from_secs(20);

/// Between two attempts to reach the bridge.
const REDIAL: Duration = Duration::from_millis(50);

/// The same in the first second after it was lost: somebody is about to take over.
const REDIAL_SOON: Duration = Duration::from_millis(10);

/// How long that is expected.
const SOON: Duration = Duration::from_secs(1);

/// Boots the VM and serves the host until the machine is switched off.
pub fn run() -> Result<()> {
    let log = Log::new();
    report_panics();
    let prepared = prepare(&log)?;
    let program = OwnProgram::open().context("opening the agent's own program")?;
    if let Err(error) = sys::prefer_this_thread(NICENESS) {
        tracing::warn!(%error, "a busy container may keep the agent waiting");
    }
    let streams = streams_runtime()?;
    runtime(TURNS)?.block_on(serve(prepared, program, log, streams))
}

/// Turns of tasks between two looks at the bridge's port. One takes long on an emulated CPU: after the usual
/// 61 whoever asks for something would wait for all of them.
const TURNS: u32 = 4;

/// The same for the ports of streams, which are busy while they are looked at: a look costs 6 µs there.
const TURNS_OF_STREAMS: u32 = 16;

/// A runtime on the thread that blocks on it.
fn runtime(turns: u32) -> Result<Runtime> {
    Builder::new_current_thread()
        // A workload can hold up one for each of its pipes.
        .max_blocking_threads(4096)
        .thread_stack_size(512 * 1024)
        .event_interval(turns)
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// A runtime on a thread of its own for the bytes of workloads. It has the usual niceness, and lives
/// as long as the agent.
fn streams_runtime() -> Result<Handle> {
    let runtime = runtime(TURNS_OF_STREAMS)?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("streams".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))
        .context("starting the thread of the streams")?;
    Ok(handle)
}

/// What [`prepare`] leaves to [`serve`].
struct Prepared {
    parameters: BootParameters,
    mounter: Mounter,
    /// Modules that are still to be loaded.
    modules: Vec<PathBuf>,
    carrier: Carrier,
}

/// Where the host finds us.
enum Carrier {
    VirtioSerial,
    Vsock(VsockPort),
}

/// Everything that needs no channel.
fn prepare(log: &Log) -> Result<Prepared> {
    umask(Mode::from_bits_truncate(0o022));
    mounts::mount_early()?;
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let parameters = BootParameters::parse(&cmdline).context("understanding the command line")?;
    log.install(parameters.log_level);
    if parameters.debug_console {
        log.copy_to_console();
    }
    if !parameters.forward_stderr {
        log.discard();
    }
    let mut list = BootList::read()?;
    let mounter = Mounter::new(Modules::open()?);
    mounter.load_modules(&list.channel);
    let carrier = match parameters.transport {
        Transport::VirtioSerial => Carrier::VirtioSerial,
        Transport::Vsock => Carrier::Vsock(listen(&mounter)?),
    };
    if parameters.root.is_some() {
        mounter.load_modules(&std::mem::take(&mut list.others));
    }
    tracing::debug!("the channel's modules are loaded");
    root::switch(parameters.root.as_ref(), &mounter)?;
    tracing::debug!("the root is switched");
    mounts::mount_late()?;
    attempt("the containers' cgroup", || {
        let group = Path::new("/sys/fs/cgroup/containers");
        mounts::create_mount_point(group)?;
        mounts::enable_controllers(group)
    });
    attempt("bringing lo up", || Ok(network::loopback_up()?));
    attempt("the limit of open files", || Ok(setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES)?));
    if let Some(time) = parameters.clock {
        attempt("the clock", || clock::catch_up(time));
    }
    let name = parameters.hostname.clone().unwrap_or_else(|| "coracle".to_owned());
    attempt("the host name", || Ok(sethostname(name)?));
    tracing::debug!("the machine is prepared");
    Ok(Prepared { parameters, mounter, modules: list.others, carrier })
}

/// Listens on AF_VSOCK before there is anything that carries it, so that the host's first dial finds us.
fn listen(mounter: &Mounter) -> Result<VsockPort> {
    mounter.load_module(vsock::FAMILY);
    let port = VsockPort::listen(VSOCK_PORT).context("listening on AF_VSOCK")?;
    mounter.load_module(vsock::TRANSPORT);
    // The host knows by it that it can dial now. It may take a moment until the port is there.
    std::thread::spawn(|| knock(&mut VirtioPort::new(STREAMS_PORT)));
    Ok(port)
}

/// Writes a byte into a port that is not used otherwise, as soon as it is there and a host with it.
fn knock(port: &mut VirtioPort) {
    let until = Instant::now() + KNOCKING;
    while Instant::now() < until {
        if let Ok(port) = port.open()
            && nix::unistd::write(&port, b"!").is_ok()
        {
            // Not closed: that might take the byte back.
            std::mem::forget(port);
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    tracing::warn!("the host could not be told that it can dial");
}

async fn serve(prepared: Prepared, program: OwnProgram, log: Log, streams: Handle) -> Result<()> {
    let Prepared { parameters, mounter, modules, carrier } = prepared;
    let reaper = Reaper::new();
    let reaping = tokio::spawn(reaper.clone().run());
    let signals = tokio::spawn(obey_signals());
    let channel = match carrier {
        Carrier::Vsock(port) => GuestChannel::open_one_on(Box::new(port), &streams),
        Carrier::VirtioSerial => {
            let control = Box::new(VirtioPort::new(CONTROL_PORT));
            let others = Box::new(VirtioPort::new(STREAMS_PORT).with_area());
            GuestChannel::open_on(control, others, &streams)
        }
    };
    let mounter = Arc::new(mounter);
    let loader = Arc::clone(&mounter);
    let load = move || loader.load_modules(&modules);
    if parameters.entropy {
        add_entropy(&channel).await;
    }
    if parameters.forward_stderr || parameters.forward_stdout {
        tokio::spawn(log.clone().forward(channel.clone()));
    }
    if !parameters.names_the_agent() {
        load();
        let ended = command::run(&parameters, &reaper, &log).await;
        if let Err(error) = &ended {
            tracing::error!("{error:#}");
        }
        log.settle().await;
        power::off_now();
        return ended;
    }
    let launcher = Launcher::new(program, reaper);
    let agent = Agent::new(launcher, Arc::clone(&mounter), channel.clone());
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let guest = Guest::new(
        Arc::new(agent),
        Arc::new(HostPorts(channel.clone())),
        GuestOptions { streams: Some(streams), ..GuestOptions::new(boot_id.trim()) },
    );
    serve_bridge(&channel, &guest, load).await;
    // The host has asked for the end, and it is under way.
    reaping.await.context("the reaper")?.context("the reaper")?;
    signals.await.context("the signal handlers")
}

/// Dials the bridge for as long as the VM lives: a host may come back at any time. Once the first
/// has answered, `load` gets the modules that are left, in the time the host takes to think; what
/// needs one before waits for it, or loads it itself.
async fn serve_bridge(channel: &GuestChannel, guest: &Guest, load: impl FnOnce() + Send + 'static) {
    let mut load = Some(load);
    let mut lost: Option<Instant> = None;
    loop {
        match channel.dial(port::BRIDGE).await {
            Ok(stream) => {
                tracing::debug!("the bridge is there");
                // Ends by itself; nobody waits for it.
                drop(load.take().map(tokio::task::spawn_blocking));
                match guest.serve(stream).await {
                    Ok(Served::PoweringOff) => return,
                    Ok(ended) => tracing::info!(?ended, "a bridge connection ended"),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "a bridge connection broke");
                    }
                }
                lost = Some(Instant::now());
            }
            Err(error) => tracing::debug!(%error, "the bridge is not there"),
        }
        let is_soon = lost.is_some_and(|lost| lost.elapsed() < SOON);
        sleep(if is_soon { REDIAL_SOON } else { REDIAL }).await;
    }
}

async fn add_entropy(channel: &GuestChannel) {
    let credited = tokio::time::timeout(ENTROPY_TIMEOUT, async {
        let stream = channel.dial(port::ENTROPY).await.context("dialling the entropy port")?;
        entropy::credit(stream).await
    });
    match credited.await {
        Ok(Ok(bytes)) => tracing::debug!(bytes, "entropy"),
        Ok(Err(error)) => tracing::warn!("no entropy: {error:#}"),
        Err(_) => tracing::warn!("no entropy: the host took too long"),
    }
}

/// Someone in the VM may ask PID 1 to end it, as with any init.
async fn obey_signals() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    power::off_gracefully().await;
}

/// The host's ports, for the streams of processes.
pub struct HostPorts(pub GuestChannel);

#[async_trait]
impl Dial for HostPorts {
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Connection>> {
        Ok(Box::new(self.0.dial(port).await?))
    }
}

/// Does what the VM can live without.
fn attempt(what: &str, act: impl FnOnce() -> Result<()>) {
    if let Err(error) = act() {
        tracing::warn!("{what}: {error:#}");
    }
}

/// A panic ends PID 1 and with it the VM; the console is the only witness.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| say_last_words(&format!("the agent panicked: {panic}"))));
}

/// Prints on the console, through the kernel's log so that it stands before the kernel's panic.
pub fn say_last_words(text: &str) {
    let line = format!("<0>coracle-guest: {text}\n");
    if fs::write("/dev/kmsg", &line).is_err() {
        eprintln!("coracle-guest: {text}");
    }
}
