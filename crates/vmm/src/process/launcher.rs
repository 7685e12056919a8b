//! Spawning a VM's process: what it may inherit, who it becomes, and with whom it dies.
//!
//! The kernel sends a death signal when the *thread* that forked the child ends, and a runtime's
//! worker threads come and go. Hence one thread of our own that spawns every VM and never ends
//! before the process does. A change of user clears the signal, so it is set after that, in the
//! child, as the last step before exec.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{
        Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit,
        setsid,
    },
    thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use tokio::sync::oneshot;

use super::Process;
use crate::{User, sys};

/// A process to be.
#[derive(Debug)]
pub(crate) struct Spawn {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Variables of its environment, which has no others.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Descriptors it keeps, under the numbers they have here.
    pub(crate) inherited: Vec<OwnedFd>,
    pub(crate) stderr: OwnedFd,
    /// `cgroup.procs` files to enter.
    pub(crate) cgroups: Vec<OwnedFd>,
    pub(crate) user: Option<User>,
    /// The one supplementary group it needs: that of `/dev/kvm`.
    pub(crate) group: Option<u32>,
    /// Raise the limit on locked memory as far as allowed.
    pub(crate) lock_memory: bool,
    pub(crate) die_with_owner: bool,
}

type Job = (Spawn, oneshot::Sender<io::Result<u32>>);

/// Spawns on the launcher thread.
pub(crate) async fn spawn(spawn: Spawn) -> io::Result<Process> {
    let (reply, answer) = oneshot::channel();
    launcher()?.send((spawn, reply)).map_err(|_| io::Error::other("the launcher has ended"))?;
    let pid = answer.await.map_err(|_| io::Error::other("the launcher has ended"))??;
    // Nobody but us reaps this child, so its id cannot have been used again.
    Process::open(pid)
}

fn launcher() -> io::Result<&'static mpsc::Sender<Job>> {
    static LAUNCHER: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    let started = LAUNCHER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let body = move || {
            for (spawn, reply) in inbox {
                // A caller that gave up has a child it never hears of; so it is killed.
                if let Err(Ok(pid)) = reply.send(start(spawn))
                    && let Ok(process) = i32::try_from(pid)
                    && let Some(process) = rustix::process::Pid::from_raw(process)
                {
                    let _ = rustix::process::kill_process(process, Signal::KILL);
                    let options = rustix::process::WaitOptions::empty();
                    let _ = rustix::process::waitpid(Some(process), options);
                }
            }
        };
        thread::Builder::new().name("vm-launcher".into()).spawn(body).ok().map(|_| jobs)
    });
    started.as_ref().ok_or_else(|| io::Error::other("the launcher thread cannot be started"))
}

fn start(spawn: Spawn) -> io::Result<u32> {
    let Spawn { program, arguments, environment, stderr, .. } = &spawn;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stderr.try_clone()?)
        .stderr(stderr.try_clone()?);
    let owner = getpid();
    sys::before_exec(&mut command, move || become_vm(&spawn, owner));
    Ok(command.spawn()?.id())
}

/// Runs between fork and exec: system calls only.
fn become_vm(spawn: &Spawn, owner: rustix::process::Pid) -> io::Result<()> {
    // A session of its own: a terminal's signals are for us, not for the VM.
    setsid()?;
    for procs in &spawn.cgroups {
        rustix::io::write(procs, b"0")?;
    }
    for descriptor in &spawn.inherited {
        fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
    }
    if spawn.lock_memory {
        raise_lock_limit()?;
    }
    // The bounding set first, while we may: without it, exec as root would give all back.
    for capability in CapabilitySet::all().iter() {
        // Refused for capabilities this kernel has not, and for who has none to drop.
        let _ = remove_capability_from_bounding_set(capability);
    }
    if let Some(User { uid, gid }) = spawn.user {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        match spawn.group {
            Some(group) => set_thread_groups(&[rustix::fs::Gid::from_raw(group)])?,
            None => set_thread_groups(&[])?,
        }
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    if spawn.die_with_owner {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // An owner that died before the line above sends no signal any more.
        if getppid() != Some(owner) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(())
}

fn raise_lock_limit() -> io::Result<()> {
    let unlimited = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, unlimited).is_ok() {
        return Ok(());
    }
    let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
    Ok(setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum })?)
}
