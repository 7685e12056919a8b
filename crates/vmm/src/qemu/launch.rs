//! Launching QEMU: from a configuration to a process that answers.
//!
//! Until the VM answers, everything made for it is [`Debris`], which removes itself when the
//! launch fails or its future is dropped.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use tokio::{net::unix::pipe::Receiver, time::timeout};

use super::{
    Qemu, boot_file,
    check::check,
    command_line::{self, Facts},
    device, firmware, shared_memory,
};
use crate::{
    Accel, Boot, ExitReason, Lock, User, VmConfig, VmIdentity, VmmError,
    accel::{self, Engine},
    cgroup,
    machine::{Attached, Console, Debris, Machine, PATIENCE, TTY_SOCKET, screen},
    process::{self, Ending, Process, Tail, host_boot_id, launcher::Spawn},
    qmp::{Client, QmpError},
    socket,
};

/// Something QEMU is handed open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Descriptor {
    Control,
    Console,
    Port(usize),
    SharedMemory,
    Kernel,
    Initrd,
    FirmwareCode,
    FirmwareVariables,
    Disk(usize),
    Pmem(usize),
}

/// How long a monitor that closed its control socket may take to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Descriptors = BTreeMap<Descriptor, OwnedFd>;

pub(super) async fn launch(qemu: &Qemu, config: VmConfig) -> Result<Machine, VmmError> {
    let (id, die_with_owner) = (config.id, config.die_with_owner);
    let (person, graphics) = (config.console.clone(), config.graphics.clone());
    let greeting = PATIENCE + touching(&config);
    let tty = config.run_dir.join(TTY_SOCKET);
    let control_socket = config.run_dir.join("qmp.sock");
    let program = find(&qemu.program)?;
    let failed = |operation| {
        let object = program.display().to_string();
        move |source| VmmError::Host { operation, object, source }
    };
    let boot_id = host_boot_id().map_err(failed("read the boot id for"))?;
    let (stderr, mut complaints) = process::stderr_pipe().map_err(failed("make a pipe for"))?;

    check(&config)?;
    let engine = engine(qemu, config.accel).await?;
    let mut debris = Debris::default();
    let handed = Handed { program: program.clone(), stderr, engine };
    let spawn = prepare(qemu, handed, config, &control_socket, &mut debris)?;
    qemu.effects.announce("launch.spawn")?;
    let process = process::launcher::spawn(spawn).await.map_err(failed("start"))?;
    let process = debris.process.insert(process);
    qemu.effects.announce("launch.connect")?;
    let control = tokio::select! {
        biased;
        control = Client::connect(&control_socket, greeting, PATIENCE) => control,
        () = process.ended_unreaped() => Err(QmpError::Closed),
    };
    let control = match control {
        Ok(control) => control,
        Err(error) => return Err(explain(process, &mut complaints, error).await),
    };

    let screen = screen::listen(graphics.as_deref())?;
    debris.sockets.extend(graphics.clone());
    let console = person.clone().map(|path| Console::listen(path, tty)).transpose()?;
    debris.sockets.extend(person.clone());

    let (process, sockets, cgroup) = debris.keep();
    let process = process.ok_or(VmmError::Gone)?;
    let (pid, start_time) = (process.pid(), process.start_time());
    let identity = VmIdentity {
        id,
        pid,
        start_time,
        boot_id,
        control_socket,
        cgroup,
        die_with_owner,
        console: person,
        graphics,
        sockets,
    };
    let attached = Attached { stderr: Some(complaints), console, screen };
    Ok(Machine::start(identity, process, control, attached, qemu.effects.clone()))
}

/// What runs guest code; tried on a thread of its own, since the trial takes its time.
async fn engine(qemu: &Qemu, accel: Accel) -> Result<Engine, VmmError> {
    if !qemu.has_machine {
        return Ok(Engine::Tcg);
    }
    let verdicts = qemu.verdicts.clone();
    let choose = move || accel::choose(accel, verdicts.as_deref());
    let choice = tokio::task::spawn_blocking(choose).await.map_err(|_| VmmError::Gone)??;
    tracing::debug!(engine = choice.engine.name(), why = choice.why, "accelerator");
    Ok(choice.engine)
}

/// What a launch has decided and made before anything of its configuration.
struct Handed {
    program: PathBuf,
    stderr: OwnedFd,
    engine: Engine,
}

/// Opens, binds and makes all the VM needs and writes its command line. What was made on the
/// host is noted in `debris` as it appears.
fn prepare(
    qemu: &Qemu,
    handed: Handed,
    config: VmConfig,
    control_socket: &Path,
    debris: &mut Debris,
) -> Result<Spawn, VmmError> {
    let Handed { program, stderr, engine } = handed;
    let mut descriptors = if qemu.has_machine { open_boot(&config)? } else { Descriptors::new() };
    let lock = may_lock(&config)?;
    for pmem in &config.pmem {
        boot_file::check_pmem(pmem, config.user)?;
    }
    let kinds = config.disks.iter().map(|disk| device::file_kind(&disk.file));
    let kinds = kinds.collect::<Result<Vec<_>, _>>()?;

    let mut sockets = vec![(Descriptor::Control, control_socket)];
    let tty = config.run_dir.join(TTY_SOCKET);
    sockets.extend(config.console.as_ref().map(|_| (Descriptor::Console, tty.as_path())));
    let ports = config.serial_ports.iter().enumerate();
    sockets.extend(ports.map(|(index, port)| (Descriptor::Port(index), port.socket.as_path())));
    for (descriptor, path) in sockets {
        qemu.effects.announce("launch.socket")?;
        let listener = socket::listen(path).map_err(|source| VmmError::Host {
            operation: "listen on",
            object: path.display().to_string(),
            source,
        })?;
        debris.sockets.push(path.to_owned());
        descriptors.insert(descriptor, listener);
    }
    if let Some(memory) = config.shared_memory.as_ref().filter(|_| engine == Engine::Tcg) {
        qemu.effects.announce("launch.memory")?;
        match shared_memory::make(memory, config.user) {
            Ok(file) => {
                debris.sockets.push(memory.path.clone());
                descriptors.insert(Descriptor::SharedMemory, file);
            }
            Err(error) => {
                let path = memory.path.display();
                tracing::debug!(%error, %path, "no memory in common with the guest");
            }
        }
    }
    let mut cgroups = Vec::new();
    if let Some(group) = &config.cgroup {
        qemu.effects.announce("launch.cgroup")?;
        match cgroup::create(group) {
            Ok(entry) => {
                debris.cgroup = Some(group.path.clone());
                cgroups.push(entry);
            }
            Err(error) if group.is_optional => tracing::debug!(%error, "no control group"),
            Err(error) => return Err(error),
        }
    }

    let number = |descriptor: Descriptor| -> RawFd {
        match descriptor {
            Descriptor::Disk(index) => config.disks[index].file.as_raw_fd(),
            Descriptor::Pmem(index) => config.pmem[index].file.as_raw_fd(),
            // The command line names only what its configuration has, and that was opened above,
            // but for the fake, which opens no boot files.
            other => descriptors.get(&other).map_or(-1, AsRawFd::as_raw_fd),
        }
    };
    let shared_memory = descriptors.contains_key(&Descriptor::SharedMemory);
    let facts = Facts { engine, lock, shared_memory, disks: &kinds, number: &number };
    let arguments = command_line::arguments(&config, &facts);
    tracing::debug!(?program, ?arguments, "launch");

    // Whoever finds the process knows whose it is.
    let marked = (crate::process::PART.into(), config.run_dir.join("qemu").into_os_string());
    let mut inherited: Vec<OwnedFd> = descriptors.into_values().collect();
    inherited.extend(config.disks.into_iter().map(|disk| disk.file));
    inherited.extend(config.pmem.into_iter().map(|pmem| pmem.file));
    Ok(Spawn {
        program,
        arguments: arguments.into_iter().map(OsString::from).collect(),
        environment: vec![("LC_ALL".into(), "C".into()), marked],
        inherited,
        stderr,
        cgroups,
        user: config.user,
        group: kvm_group(config.user, engine),
        lock_memory: lock,
        die_with_owner: config.die_with_owner,
    })
}

/// Opens what the VM boots.
fn open_boot(config: &VmConfig) -> Result<Descriptors, VmmError> {
    let mut descriptors = Descriptors::new();
    let (kernel, initrd) = match &config.boot {
        Boot::None => return Ok(descriptors),
        Boot::Kernel { kernel, initrd, .. } => (boot_file::kernel(kernel, config.user)?, initrd),
        Boot::Firmware { kernel, initrd, .. } => {
            let (code, variables) = firmware::open()?;
            descriptors.insert(Descriptor::FirmwareCode, code);
            descriptors.insert(Descriptor::FirmwareVariables, variables);
            (boot_file::efi_kernel(kernel, config.user)?, initrd)
        }
    };
    let initrd = initrd.as_ref().map(|path| boot_file::initrd(path, config.user)).transpose()?;
    let (given, least) = (config.memory.size, boot_file::least_memory(&kernel, initrd.as_ref()));
    if given < least {
        return Err(VmmError::MemoryTooSmall { given, least });
    }
    descriptors.insert(Descriptor::Kernel, kernel.file);
    descriptors.extend(initrd.map(|initrd| (Descriptor::Initrd, initrd.file)));
    Ok(descriptors)
}

/// How much longer a monitor is silent which touches all of its memory before it answers.
fn touching(config: &VmConfig) -> Duration {
    /// A slow host's pace.
    const MIB_PER_SECOND: u64 = 256;
    match (config.memory.prealloc, config.memory.lock) {
        (false, Lock::No) => Duration::ZERO,
        (true, _) | (_, Lock::IfAllowed | Lock::Required) => {
            Duration::from_secs(config.memory.size.0 / MIB_PER_SECOND)
        }
    }
}

/// Why a VM never answered.
async fn explain(process: &Process, complaints: &mut Receiver, error: QmpError) -> VmmError {
    // It closes the socket a moment before it ends.
    let ended = timeout(LAST_WORDS, process.ended_unreaped()).await;
    if ended.is_err() {
        return VmmError::Control { operation: "connect".into(), source: error };
    }
    let mut tail = Tail::default();
    tail.read_rest(complaints);
    let stderr = tail.text();
    let reason = match process.ended().await {
        Ending::Exited(status) => ExitReason::Failed { status: Some(status), stderr },
        Ending::Signalled(signal) => ExitReason::Signal { signal, stderr },
        Ending::Unknown => ExitReason::Failed { status: None, stderr },
    };
    VmmError::Launch { reason }
}

/// The program's path; looked for ourselves, since a failed exec does not tell who is missing.
fn find(program: &Path) -> Result<PathBuf, VmmError> {
    let missing = || VmmError::NotInstalled {
        program: program.display().to_string(),
        package: "qemu-system-x86",
    };
    if program.components().count() > 1 {
        return if program.is_file() { Ok(program.to_owned()) } else { Err(missing()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file());
    found.ok_or_else(missing)
}

/// Whether memory is to be locked; the limit is asked before QEMU fails on it half-way.
fn may_lock(config: &VmConfig) -> Result<bool, VmmError> {
    /// QEMU locks itself too, its translator's cache included.
    const MONITOR_MIB: u64 = 1536;
    if config.memory.lock == Lock::No {
        return Ok(false);
    }
    let needed = config.memory.size.0 + MONITOR_MIB;
    let limit = getrlimit(Resource::Memlock).maximum;
    let Some(limit) = limit.filter(|limit| limit >> 20 < needed) else { return Ok(true) };
    // Whoever may raise the limit does so for the child.
    let ours = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if ours.contains(CapabilitySet::SYS_RESOURCE) {
        return Ok(true);
    }
    let allowed = limit >> 20;
    if config.memory.lock == Lock::Required {
        return Err(VmmError::MemoryLock { needed, allowed });
    }
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(needed, allowed, "guest memory is not locked: ulimit -l (MiB) is too low");
    });
    Ok(false)
}

/// The group that may open `/dev/kvm`, for a user who is neither its owner nor everybody.
fn kvm_group(user: Option<User>, engine: Engine) -> Option<u32> {
    if user.is_none() || engine != Engine::Kvm {
        return None;
    }
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060 && device.mode() & 0o006 != 0o006).then(|| device.gid())
}
