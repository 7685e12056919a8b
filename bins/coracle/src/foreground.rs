//! Leaving a terminal without ending the command on it.
//!
//! A shell takes the terminal back when the process it started ends. So on a terminal
//! `run` is two processes: the outer one, which the shell waits for, and the inner one,
//! which does everything. One byte in a pipe from the inner to the outer means
//! *detached, you may go*. If the outer one dies first, the kernel sends the inner one a
//! hang-up, as it does when a terminal goes away.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::report::EXIT_FAILURE;
use crate::signals::Signals;

/// Names the inner process's end of the pipe.
const VARIABLE: &str = "CORACLE_FOREGROUND_FD";

/// Is this the inner process?
pub fn is_inner() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The outer process: starts the inner one, passes signals on, and ends with it or
/// when it detaches.
pub fn supervise() -> Result<ExitCode> {
    let (mut reader, writer) = pipe().context("cannot make a pipe")?;
    // Nothing else is started meanwhile that could inherit it too.
    fcntl_setfd(&writer, FdFlags::empty()).context("cannot pass the pipe on")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = tokio::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env(VARIABLE, writer.as_raw_fd().to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let code = runtime.block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let mut inner = command.spawn().context("cannot start the inner process")?;
        drop(writer);
        let mut detached = tokio::task::spawn_blocking(move || reader.read(&mut [0]));
        loop {
            tokio::select! {
                status = inner.wait() => return Ok::<_, anyhow::Error>(code_of(status?)),
                said = &mut detached => match said {
                    Ok(Ok(1)) => return Ok(0),
                    // The pipe ended: the inner process did, or is about to.
                    _ => return Ok(code_of(inner.wait().await?)),
                },
                signal = signals.next() => pass_on(inner.id(), signal.number()),
            }
        }
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::from(code))
}

fn pass_on(to: Option<u32>, number: i32) {
    let pid = to.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) {
        // It may have ended in between.
        let _ = kill_process(pid, signal);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_FAILURE)
}

/// What the inner process holds of the outer one; nothing if there is none.
#[derive(Debug)]
pub struct Foreground(Option<File>);

impl Foreground {
    /// Takes up the pipe, if this is an inner process.
    pub fn of_this_process() -> Result<Foreground> {
        let Ok(number) = std::env::var(VARIABLE) else { return Ok(Foreground(None)) };
        set_parent_process_death_signal(Some(Signal::HUP))
            .context("cannot ask for a hang-up when the outer process dies")?;
        let pipe = File::options().write(true).open(format!("/proc/self/fd/{number}"));
        pipe.map(|pipe| Foreground(Some(pipe))).context("cannot open the pipe to the outer process")
    }

    /// Lets the outer process go; from now on the terminal is not ours.
    pub fn let_go(&mut self) -> Result<()> {
        let Some(mut pipe) = self.0.take() else { return Ok(()) };
        set_parent_process_death_signal(None).context("cannot stay when the outer process ends")?;
        let nowhere = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&nowhere)?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        pipe.write_all(&[1]).context("cannot tell the outer process")
    }
}
