//! One more process in a container, with everything that confines the container's init.
//!
//! Our own code rather than libcontainer's, whose further processes have neither the container's
//! system call filter nor its user namespace: a process that enters a container must be no freer
//! than the one that is already in it. The order of the steps is what makes it so:
//!
//! ```text
//!   helper                                  process
//!   join the cgroup
//!   become untraceable
//!   join all namespaces at once (pidfd)
//!   uid 0 of the user namespace
//!   clone, as a child of the agent  ──────▶ new session, terminal, limits, directory
//!   report the pid, exit                    filter (while it may), groups, uid, capabilities
//!                                           find the program, execve
//! ```
//!
//! Joining by pidfd means that the init cannot have been replaced by another process of the same
//! number. The process reports failures on the same socket as the helper; that the socket closes
//! without any means that `execve` went well.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Process, User};
use libcontainer::seccomp;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::pty::openpty;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, getcwd, setgroups, setresgid,
    setresuid, setsid,
};

use super::executor::become_program;
use super::request::{Exec, Failure, FailureKind, ReplySocket};
use super::{identity, layout, spec};
use crate::sys::{self, Cloned, SingleThread};

/// Starts the process; its pid has been reported when this returns in the helper.
pub fn exec(request: Exec, init: &OwnedFd, reply: &ReplySocket) -> Result<()> {
    let alone = SingleThread::ensure().context("counting threads")?;
    let Exec { mut process, init: first, seccomp, namespaces, cgroup } = request;
    inherit(&mut process, &first);
    spec::settle_process(&mut process);
    if let Some(filter) = &seccomp {
        ensure!(!seccomp::is_notify(filter), "a filter with a listener is for the init only");
    }

    let members = cgroup.join("cgroup.procs");
    fs::write(&members, "0").with_context(|| format!("joining {}", cgroup.display()))?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .context("setting the oom score")?;
    }
    // From here on the container's processes could see this one; they shall not trace it.
    prctl::set_dumpable(false).context("becoming untraceable")?;
    setns(init.as_fd(), namespace_flags(&namespaces)?).context("joining the container")?;
    let own_users = namespaces.contains(&LinuxNamespaceType::User);
    if own_users {
        become_namespace_root()?;
    }
    match sys::clone_sibling(&alone).context("making the process")? {
        Cloned::Parent(pid) => Ok(reply.pid(pid.as_raw())?),
        Cloned::Child => {
            let failure = match confine(&mut process, seccomp.as_ref(), own_users, reply) {
                Ok(()) => become_program(&process),
                Err(error) => match error.downcast::<Failure>() {
                    Ok(failure) => failure,
                    Err(error) => {
                        Failure { kind: FailureKind::Other, message: format!("{error:#}") }
                    }
                },
            };
            drop(reply.failed(&failure));
            std::process::exit(127)
        }
    }
}

/// What the process leaves out is as for the init. It never gets more by leaving out.
fn inherit(process: &mut Process, init: &Process) {
    if process.capabilities().is_none() {
        process.set_capabilities(init.capabilities().clone());
    }
    if process.rlimits().is_none() {
        process.set_rlimits(init.rlimits().clone());
    }
    if process.no_new_privileges().is_none() || init.no_new_privileges() == Some(true) {
        process.set_no_new_privileges(init.no_new_privileges());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(init.oom_score_adj());
    }
    if process.env().is_none() {
        process.set_env(init.env().clone());
    }
    if process.cwd().as_os_str().is_empty() {
        process.set_cwd(init.cwd().clone());
    }
}

fn namespace_flags(namespaces: &[LinuxNamespaceType]) -> Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for namespace in namespaces {
        flags |= match namespace {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
            LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            // CLONE_NEWTIME, which nix does not name.
            LinuxNamespaceType::Time => CloneFlags::from_bits_retain(0x80),
        };
    }
    ensure!(flags.contains(CloneFlags::CLONE_NEWNS), "the container has no mounts of its own");
    Ok(flags)
}

/// Setting the ids makes the process traceable again by default, which is taken back at once.
fn become_namespace_root() -> Result<()> {
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    // Refused where the mapping forbids it; then there were no groups to lose.
    match setgroups(&[]) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error).context("dropping groups"),
    }
    setresgid(root.1, root.1, root.1).context("becoming group 0 of the user namespace")?;
    setresuid(root.0, root.0, root.0).context("becoming user 0 of the user namespace")?;
    prctl::set_dumpable(false).context("becoming untraceable")
}

/// Everything between birth and `execve`, in the new process.
fn confine(
    process: &mut Process,
    filter: Option<&LinuxSeccomp>,
    own_users: bool,
    reply: &ReplySocket,
) -> Result<()> {
    setsid().context("making a session")?;
    // The mount namespace was joined, so this is the container's root and its account files.
    identity::settle_beneath(process, None, Path::new("/"))?;
    let user = process.user().clone();
    if process.terminal().unwrap_or(false) {
        make_terminal(&user, reply)?;
    } else if !own_users {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        layout::own([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], (user.uid(), user.gid()));
    }
    let syscall = SyscallType::Linux.create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(limit)
            .with_context(|| format!("setting the limit {:?}", limit.typ()))?;
    }
    if let Some(mask) = user.umask() {
        umask(Mode::from_bits_truncate(mask));
    }
    let as_root = enter_directory(process.cwd())?;
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        prctl::set_no_new_privs().context("forbidding new privileges")?;
    }
    set_identity(&user)?;
    // Without no_new_privs only the privileged may load a filter, so it comes before the drop.
    if let Some(filter) = filter.filter(|_| !no_new_privileges) {
        load_filter(filter)?;
    }
    if let Some(granted) = process.capabilities() {
        drop_capabilities(granted, &*syscall)?;
    }
    if !as_root {
        chdir(process.cwd()).with_context(|| format!("entering {}", process.cwd().display()))?;
    }
    // A directory outside would be a way out.
    let here = getcwd().context("reading the working directory")?;
    ensure!(here.is_absolute(), "the working directory is outside the container");
    if let Some(filter) = filter.filter(|_| no_new_privileges) {
        load_filter(filter)?;
    }
    Ok(())
}

/// The terminal is made from the container's own devpts, so that it has a name in there.
fn make_terminal(user: &User, reply: &ReplySocket) -> Result<()> {
    let pair = openpty(None, None).context("making a terminal in the container")?;
    let is_devpts = nix::sys::statfs::fstatfs(&pair.slave)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::FsType(0x1cd1));
    ensure!(is_devpts, "the container's /dev/ptmx is no terminal");
    let _ = fchown(&pair.slave, Some(Uid::from_raw(user.uid())), None);
    reply.terminal(pair.master.as_fd()).context("handing over the terminal")?;
    sys::take_terminal(pair.slave.as_fd()).context("taking the terminal")?;
    dup2_stdin(&pair.slave).context("connecting stdin")?;
    dup2_stdout(&pair.slave).context("connecting stdout")?;
    dup2_stderr(&pair.slave).context("connecting stderr")
}

/// As root if root may: a directory may be closed to the user. False when root may not (a
/// network file system) and the user has to try.
fn enter_directory(path: &Path) -> Result<bool> {
    match chdir(path) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM | Errno::EACCES) => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("entering the working directory {}", path.display()))
        }
    }
}

fn set_identity(user: &User) -> Result<()> {
    let groups: Vec<Gid> =
        user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    match setgroups(&groups) {
        Ok(()) => {}
        Err(Errno::EPERM) if groups.is_empty() => {}
        Err(error) => return Err(error).context("setting the groups"),
    }
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    prctl::set_keepcaps(true).context("keeping capabilities for a moment")?;
    setresgid(gid, gid, gid).with_context(|| format!("becoming group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("becoming user {uid}"))?;
    prctl::set_keepcaps(false).context("keeping capabilities no longer")?;
    prctl::set_dumpable(false).context("becoming untraceable")?;
    // Leaving uid 0 has emptied the effective set, which the next steps need.
    capabilities::reset_effective(&*SyscallType::Linux.create_syscall())
        .context("regaining capabilities")
}

fn drop_capabilities(
    granted: &libcontainer::oci_spec::runtime::LinuxCapabilities,
    syscall: &dyn Syscall,
) -> Result<()> {
    capabilities::drop_privileges(granted, syscall).context("dropping capabilities")
}

fn load_filter(filter: &LinuxSeccomp) -> Result<()> {
    let listener = seccomp::initialize_seccomp(filter).context("loading the system call filter")?;
    ensure!(listener.is_none(), "the system call filter has a listener");
    Ok(())
}
