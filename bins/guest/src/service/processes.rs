//! Processes of the VM itself, and what can be done to any process.
//!
//! Unlike hcsshim's guest, ours signals and resizes processes of the VM as it does those of
//! containers.

use std::os::fd::AsFd;
use std::sync::PoisonError;

use coracle_bridge::hresult::Hresult;
use coracle_bridge::message::ProcessParameters;
use coracle_bridge::server::{ServiceError, Started};

use super::{Agent, Process, errors, started};
use crate::process::program::{Attachment, Command};
use crate::process::streams;
use crate::process::terminal::Terminal;
use crate::sys;

impl Agent {
    pub(super) fn exec_external(
        &self,
        parameters: &ProcessParameters,
    ) -> Result<Started, ServiceError> {
        let command = Command {
            arguments: arguments(parameters)?,
            environment: parameters.environment.clone(),
            directory: parameters.working_directory.clone(),
        };
        let name = command.arguments.first().cloned().unwrap_or_default();
        let failed = |error| errors::spawn(&name, &error);
        if parameters.emulate_console {
            let (terminal, path) = Terminal::open()?;
            if let Some((height, width)) = parameters.console_size {
                started::resize(&terminal, u64::from(width), u64::from(height));
            }
            let attachment = Attachment::Terminal(&path);
            let child = command.spawn(self.reaper(), &attachment).map_err(failed)?;
            self.remember(&child, Some(terminal.clone()));
            return Ok(started::on_terminal(&child, &terminal, parameters));
        }
        let (workload, ends) =
            streams::make(started::wanted(parameters, false), self.channel.area())?;
        let [stdin, stdout, stderr] = &workload.descriptors;
        let attachment = Attachment::Descriptors([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        let child = command.spawn(self.reaper(), &attachment).map_err(failed)?;
        self.remember(&child, None);
        Ok(started::on_pipes(&child, ends, parameters))
    }

    pub(super) fn signal_process(&self, pid: u32, signal: i32) -> Result<(), ServiceError> {
        let process = self.process(pid)?;
        if !(1..=64).contains(&signal) {
            return Err(ServiceError::invalid(format!("{signal} is no signal")));
        }
        match process.child.while_alive(|pid| sys::kill(pid, signal)) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.raw_os_error() != Some(libc::ESRCH) => Err(error.into()),
            Some(Err(_)) | None => Err(Hresult::NOT_FOUND.into()),
        }
    }

    pub(super) fn resize_process(
        &self,
        pid: u32,
        width: u16,
        height: u16,
    ) -> Result<(), ServiceError> {
        let process = self.process(pid)?;
        let terminal = process.terminal.as_ref();
        let terminal = terminal
            .ok_or_else(|| ServiceError::failed(format!("process {pid} has no terminal")))?;
        Ok(terminal.resize(width, height)?)
    }

    fn process(&self, pid: u32) -> Result<Process, ServiceError> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get(&pid).cloned().ok_or_else(|| Hresult::NOT_FOUND.into())
    }
}

/// A list of arguments, or a line to be split as a shell would.
fn arguments(parameters: &ProcessParameters) -> Result<Vec<String>, ServiceError> {
    if !parameters.command_args.is_empty() {
        return Ok(parameters.command_args.clone());
    }
    let words = shell_words::split(&parameters.command_line)
        .map_err(|error| ServiceError::invalid(format!("the command line: {error}")))?;
    if words.is_empty() {
        return Err(ServiceError::invalid("no program is named"));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_win_over_a_command_line() {
        let parameters = ProcessParameters {
            command_args: vec!["a".to_owned(), "b c".to_owned()],
            command_line: "other".to_owned(),
            ..ProcessParameters::default()
        };
        assert_eq!(arguments(&parameters).unwrap(), ["a", "b c"]);
    }

    #[test]
    fn a_command_line_is_split_as_a_shell_would() {
        let line = |text: &str| {
            arguments(&ProcessParameters {
                command_line: text.to_owned(),
                ..ProcessParameters::default()
            })
        };
        assert_eq!(line("sh -c 'echo \"a b\"'").unwrap(), ["sh", "-c", "echo \"a b\""]);
        assert!(line("sh -c 'open").is_err());
        assert!(line("").is_err());
    }
}
