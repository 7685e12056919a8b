//! The program that plays the guest.
//!
//! It takes over the listening sockets of the serial ports, so that a client which dialled before
//! the guest began waits in the backlog, as it would wait for a guest that has not opened its end.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    process::{Command, Stdio},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Signal, set_parent_process_death_signal},
};
use tokio::process::{Child, Command as AsyncCommand};

use super::Program;
use crate::sys;

/// Starts the program; it dies with us. Called on the main thread, which ends with the process.
pub(super) fn start(program: &Program, ports: &BTreeMap<String, RawFd>) -> io::Result<Child> {
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(name);
    command.args(arguments);
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for (port, socket) in ports {
        let socket = sys::inherited(*socket);
        let option = port.rsplit('.').next().unwrap_or(port);
        command.arg(format!("--{option}")).arg(format!("fd:{}", socket.as_raw_fd()));
        sockets.push(socket);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::before_exec(&mut command, move || {
        for socket in &sockets {
            fcntl_setfd(socket, FdFlags::empty())?;
        }
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    });
    AsyncCommand::from(command).kill_on_drop(true).spawn()
}
