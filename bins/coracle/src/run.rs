//! `coracle run`: one command in one container in one VM, until the command ends.
//!
//! The sandbox belongs to the engine; this file only connects it with the user: the
//! command line, standard streams, the terminal and signals.
//!
//! ```text
//!   stdin thread ──► container.stdin        container.stdout ──► stdout
//!   signals ──────► launch: cancel / running: forward, the third one kills
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_engine::monitor::api::Order;
use coracle_engine::plug::{Kind, PlugSpec, ShareType};
use coracle_engine::root::Root;
use coracle_engine::settings::{Places, Settings, SettingsError, Tuning};
use coracle_engine::timeline::{Phase, Timeline};
use coracle_engine::{Command, Process, RootFs, Sandbox, SandboxSpec};
use tokio_util::sync::CancellationToken;

use crate::accel;
use crate::cli::{self, Format, RunArgs};
use crate::detach::DetachKeys;
use crate::detached;
use crate::foreground::{self, Foreground};
use crate::net;
use crate::plug::{absolute, device_path};
use crate::progress::Bar;
use crate::signals::{Signal, Signals, Urgency};
use crate::streams::{self, Ending};
use crate::terminal;

/// The memory of a VM if nobody says how much.
const MEMORY_MIB: u64 = 1024;

/// How long the last output may take after the command ended.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What a detached sandbox on the built-in root does when nothing is said: it waits, and ends when
/// asked to.
const IDLE: [&str; 3] =
    ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"];

/// Runs the command and returns its exit code.
pub fn run(args: &RunArgs, words: (Option<&str>, &[String]), root: &Root) -> Result<ExitCode> {
    if let Some(sandbox) = &args.sandbox {
        return crate::further::run(args, sandbox, words, root);
    }
    let began = Instant::now();
    let detach_keys = DetachKeys::parse(&args.detach_keys)
        .map_err(anyhow::Error::msg)
        .context("cannot use --detach-keys")?;
    let on_terminal = args.tty && terminal::is_terminal();
    if on_terminal && !foreground::is_inner() {
        return foreground::supervise();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    if args.accel == cli::Accel::Auto {
        accel::tell_of_fallback(root);
    }
    if args.detach {
        return detach(args, words, root);
    }
    let session = Session {
        args,
        sandbox: sandbox_spec(args, words.0)?,
        command: command(args, words.1, on_terminal)?,
        detach_keys,
        on_terminal,
    };
    let outcome = runtime.block_on(session.run(root, began));
    // A thread may still sit in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    terminal::restore();
    Ok(ExitCode::from(outcome?))
}

/// Hands the sandbox to a monitor.
fn detach(args: &RunArgs, words: (Option<&str>, &[String]), root: &Root) -> Result<ExitCode> {
    detached::run(root, &order(args, words)?, args.format)
}

/// Writes the sandbox down, for `coracle start`.
pub fn create(args: &RunArgs, words: (Option<&str>, &[String]), root: &Root) -> Result<ExitCode> {
    let view = coracle_engine::monitor::create(root, order(args, words)?)?;
    match args.format {
        Format::Text => println!("{}", view.name),
        Format::Json => println!("{}", serde_json::to_string(&view)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn order(args: &RunArgs, words: (Option<&str>, &[String])) -> Result<Order> {
    if args.sandbox.is_some() {
        bail!("--in is for `run`: what is in a sandbox comes and goes with it");
    }
    let mut sandbox = sandbox_spec(args, words.0)?;
    sandbox.hotplug = true;
    sandbox.name.get_or_insert_with(coracle_engine::sandbox::random_name);
    let mut command = command(args, words.1, false)?;
    if sandbox.rootfs == RootFs::BuiltIn && command.args.is_empty() && command.entrypoint.is_none()
    {
        command.args = IDLE.map(str::to_owned).to_vec();
    }
    if let RootFs::At(path) = &mut sandbox.rootfs {
        // The monitor has a working directory of its own.
        *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
    }
    Ok(Order {
        sandbox,
        command,
        remove: args.rm,
        restart: args.restart,
        health: args.health.check(),
        log: args.log.limits(),
        when_full: args.log.when_full(),
    })
}

/// What the options ask for; where they say nothing, what settings ask for; else the defaults.
fn sandbox_spec(args: &RunArgs, rootfs: Option<&str>) -> Result<SandboxSpec> {
    let mut spec = by_default(args, rootfs)?;
    configure(args, &mut spec).map_err(coracle_engine::Error::from)?;
    spec.memory_mib = args.memory.unwrap_or(spec.memory_mib);
    spec.vcpus = args.cpus.unwrap_or(spec.vcpus);
    spec.max_vcpus = args.max_cpus.or(spec.max_vcpus);
    spec.max_memory_mib = args.max_memory.or(spec.max_memory_mib);
    spec.kernel = args.kernel.clone().or(spec.kernel);
    spec.physical_memory |= args.physical_memory;
    spec.check()?;
    Ok(spec)
}

fn configure(args: &RunArgs, spec: &mut SandboxSpec) -> Result<(), SettingsError> {
    let mut settings = Settings::load(&Places::of_this_process())?;
    args.set.iter().try_for_each(|text| settings.set(text))?;
    settings.apply(spec)
}

fn by_default(args: &RunArgs, rootfs: Option<&str>) -> Result<SandboxSpec> {
    Ok(SandboxSpec {
        name: args.name.clone(),
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        max_vcpus: None,
        max_memory_mib: None,
        accel: args.accel.into(),
        kernel: None,
        rootfs: rootfs.map_or(RootFs::BuiltIn, |path| RootFs::At(path.into())),
        scratch_mib: args.scratch,
        read_only: args.read_only,
        plugs: plugs(args)?,
        hotplug: false,
        physical_memory: false,
        tuning: Tuning::default(),
        networks: net::requests(args.net.as_deref(), &args.network)?,
        helper: std::env::current_exe().ok(),
    })
}

/// What the options plug in, kind by kind, in the order they were given.
fn plugs(args: &RunArgs) -> Result<Vec<PlugSpec>> {
    let given = [
        (Kind::Share, ShareType::VirtioFs, "--volume", &args.volume),
        (Kind::Share, ShareType::Plan9, "--share", &args.share),
        (Kind::Disk, ShareType::VirtioFs, "--disk", &args.disk),
        (Kind::Pmem, ShareType::VirtioFs, "--pmem", &args.pmem),
        (Kind::Pipe, ShareType::VirtioFs, "--pipe", &args.pipe),
    ];
    let mut plugs = Vec::new();
    for (kind, share_type, option, texts) in given {
        for text in texts {
            let spec = PlugSpec::parse(kind, text)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("cannot use {option}"))?;
            plugs.push(PlugSpec { source: absolute(&spec.source), share_type, ..spec });
        }
    }
    for text in &args.device {
        let spec = PlugSpec::parse_device(text)
            .map_err(anyhow::Error::msg)
            .context("cannot use --device")?;
        plugs.push(PlugSpec { source: device_path(&spec.source), ..spec });
    }
    Ok(plugs)
}

pub fn command(args: &RunArgs, words: &[String], on_terminal: bool) -> Result<Command> {
    Ok(Command {
        args: words.to_vec(),
        entrypoint: args.entrypoint.clone(),
        env: variables(&args.env)?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        hostname: args.hostname.clone(),
        stdin: args.interactive,
        terminal: args.tty.then(|| if on_terminal { terminal::size() } else { None }),
    })
}

/// `NAME=VALUE` as it is; `NAME` with our own value, or not at all without one.
pub fn variables(given: &[String]) -> Result<Vec<String>> {
    if let Some(bad) = given.iter().find(|e| e.is_empty() || e.starts_with('=')) {
        bail!("--env {bad:?} has no name: write NAME=VALUE, or NAME to take it from here");
    }
    let value = |entry: &String| {
        if entry.contains('=') {
            return Some(entry.clone());
        }
        std::env::var(entry).ok().map(|value| format!("{entry}={value}"))
    };
    Ok(given.iter().filter_map(value).collect())
}

struct Session<'a> {
    args: &'a RunArgs,
    sandbox: SandboxSpec,
    command: Command,
    detach_keys: DetachKeys,
    on_terminal: bool,
}

impl Session<'_> {
    async fn run(self, root: &Root, began: Instant) -> Result<u8> {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let timeline = Timeline::since(began);
        let cancel = CancellationToken::new();
        let progress = Bar::new();
        let mut launch = std::pin::pin!(Sandbox::launch(
            root,
            self.sandbox.clone(),
            timeline,
            cancel.clone(),
            progress.callback(),
        ));
        let mut interrupted = None;
        let sandbox = loop {
            tokio::select! {
                sandbox = &mut launch => break sandbox,
                signal = signals.next() => {
                    // Resizes and the like mean nothing yet; an end means: undo all.
                    if signal.ends_a_program() {
                        interrupted = Some(signal);
                        cancel.cancel();
                    }
                }
            }
        };
        drop(progress);
        let mut sandbox = match (sandbox, interrupted) {
            (Ok(sandbox), None) => sandbox,
            (Ok(sandbox), Some(signal)) => {
                sandbox.close().await?;
                return Ok(signal.exit_code());
            }
            (Err(_), Some(signal)) => return Ok(signal.exit_code()),
            (Err(error), None) => return Err(error.into()),
        };
        let outcome = self.in_sandbox(&mut sandbox, &mut signals).await;
        let timeline = sandbox.timeline().clone();
        let closed = sandbox.close().await;
        terminal::restore();
        if self.args.timeline {
            print_timeline(&timeline, self.args.format);
        }
        let code = outcome?;
        closed?;
        Ok(code)
    }

    async fn in_sandbox(&self, sandbox: &mut Sandbox, signals: &mut Signals) -> Result<u8> {
        let container = match self.start_unless_signalled(sandbox, signals).await {
            Err(signal) => return Ok(signal.exit_code()),
            Ok(container) => container,
        };
        let container = match container {
            Ok(container) => container,
            Err(error) => match error.exit_code() {
                Some(code) => {
                    crate::report::print_error(&error.into(), self.args.format);
                    return Ok(code);
                }
                None => return Err(error.into()),
            },
        };
        let (code, first_byte) = self.attend(container, signals).await?;
        if let Some(at) = first_byte {
            sandbox.timeline_mut().reach_at(Phase::FirstByte, at);
        }
        sandbox.timeline_mut().reach(Phase::Exit);
        Ok(code)
    }

    /// Starts the command, or fails to; a signal that comes first is returned instead.
    async fn start_unless_signalled(
        &self,
        sandbox: &mut Sandbox,
        signals: &mut Signals,
    ) -> Result<Result<Process, coracle_engine::Error>, Signal> {
        let mut starting = std::pin::pin!(sandbox.start(&self.command));
        loop {
            tokio::select! {
                container = &mut starting => return Ok(container),
                signal = signals.next() => if signal.ends_a_program() {
                    return Err(signal);
                }
            }
        }
    }

    /// Connects the container with the user until its command ends.
    async fn attend(
        &self,
        mut container: Process,
        signals: &mut Signals,
    ) -> Result<(u8, Option<Instant>)> {
        let raw = if self.on_terminal { Some(terminal::RawMode::enter()?) } else { None };
        let mut foreground = Foreground::of_this_process()?;
        let keys = self.on_terminal.then(|| self.detach_keys.clone());
        let mut input = streams::pump_stdin(container.take_stdin(), keys);
        let mut output = streams::pump_output(container.take_stdout(), container.take_stderr());
        let mut urgency = Urgency::default();
        let mut raw = raw;
        let exit = loop {
            tokio::select! {
                exit = container.wait() => break exit?,
                () = input.detached() => {
                    drop(raw.take());
                    output.discard();
                    foreground.let_go()?;
                }
                () = output.broken() => {
                    // As a program writing into a closed pipe: it dies of SIGPIPE.
                    container.kill().await?;
                    container.wait().await?;
                    return Ok((128 + 13, output.first_byte()));
                }
                signal = signals.next() => match signal.number() {
                    _ if signal.is_resize() => if let Some((width, height)) = terminal::size() {
                        container.resize(width, height).await?;
                    },
                    _ if urgency.is_over(signal) => container.kill().await?,
                    number => container.signal(number).await?,
                },
            }
        };
        if output.finish(DRAIN).await == Ending::TimedOut {
            tracing::warn!("the command's output did not end with it; the rest is not shown");
        }
        drop(raw);
        // Exit codes are eight bits wide; 128+n for signals is the agent's arithmetic.
        Ok((u8::try_from(exit & 0xff).unwrap_or(u8::MAX), output.first_byte()))
    }
}

fn print_timeline(timeline: &Timeline, format: Format) {
    let marks = timeline.marks();
    match format {
        Format::Json => eprintln!("{}", serde_json::json!({ "timeline": marks })),
        Format::Text => {
            eprintln!("{:<16} {:>9} {:>9}", "phase", "at ms", "took ms");
            for mark in marks {
                eprintln!("{:<16} {:>9.1} {:>9.1}", mark.phase.name(), mark.at_ms, mark.took_ms);
            }
        }
    }
}
