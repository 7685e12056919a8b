//! Pipes between the agent and a workload.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use coracle_bridge::channel::SharedArea;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::pipe::{Inlet, Outlet};

/// The workload's ends of its three streams.
#[derive(Debug)]
pub struct WorkloadEnds {
    /// Its standard input, output and error, in this order.
    pub descriptors: [OwnedFd; 3],
}

/// The agent's ends.
#[derive(Debug)]
pub struct AgentEnds {
    /// Writes to the workload's standard input; dropping it is the end of that stream.
    pub stdin: Option<Inlet>,
    /// Reads the workload's standard output.
    pub stdout: Option<Outlet>,
    /// Reads the workload's standard error.
    pub stderr: Option<Outlet>,
}

/// Which streams are wanted; the others are `/dev/null`.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Makes the pipes for a workload, whose output is read into the area if there is one. Needs a tokio runtime.
pub fn make(wanted: Wanted, area: Option<&SharedArea>) -> io::Result<(WorkloadEnds, AgentEnds)> {
    let (its_in, stdin) = input(wanted.stdin)?;
    let (its_out, stdout) = output(wanted.stdout, area)?;
    let (its_err, stderr) = output(wanted.stderr, area)?;
    let descriptors = [its_in, its_out, its_err];
    Ok((WorkloadEnds { descriptors }, AgentEnds { stdin, stdout, stderr }))
}

fn input(wanted: bool) -> io::Result<(OwnedFd, Option<Inlet>)> {
    if !wanted {
        return Ok((null()?, None));
    }
    let (its, ours) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((its, Some(Inlet::new(not_blocking(ours)?))))
}

fn output(wanted: bool, area: Option<&SharedArea>) -> io::Result<(OwnedFd, Option<Outlet>)> {
    if !wanted {
        return Ok((null()?, None));
    }
    let (ours, its) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((its, Some(Outlet::new(not_blocking(ours)?, area.cloned()))))
}

/// Only our end: each end of a pipe has flags of its own.
fn not_blocking(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(descriptor)
}

/// What a stream nobody asked for is connected to.
pub fn null() -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/null")?;
    Ok(file.into())
}
