//! The last step of a workload's process: find its program and become it.
//!
//! Runs inside the container, as the user of the process, so that what is found executable is
//! executable for that user. Failures keep their kind all the way to the host: no such program is
//! 127 to people, one that cannot be executed 126.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execve};

use super::request::{Failure, FailureKind, ReplySocket};

/// Where programs are looked for when nobody says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How libcontainer becomes the container's init.
#[derive(Debug, Clone)]
pub struct InitExecutor {
    /// The helper's reply socket, which the process inherits until it executes its program.
    pub reply: RawFd,
}

impl Executor for InitExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let Err(failure) = process.ok_or_else(no_process).and_then(find_program) else {
            return Ok(());
        };
        report(self.reply, &failure);
        Err(ExecutorValidationError::ArgValidationError(failure.message))
    }

    /// The environment goes to `execve` as it is; that of this process no one sees.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = match spec.process().as_ref() {
            Some(process) => become_program(process),
            None => no_process(),
        };
        // The host has long been told that the container is ready. What is left is what a shell
        // would do: say so on stderr and exit with its code.
        drop(writeln!(std::io::stderr(), "coracle: {failure}"));
        let code = if failure.kind == FailureKind::ProgramNotFound { 127 } else { 126 };
        std::process::exit(code)
    }
}

/// Replaces this process by the program of `process`; returns only when that fails.
pub fn become_program(process: &Process) -> Failure {
    let program = match find_program(process) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let strings = |texts: &Option<Vec<String>>| -> Result<Vec<CString>, Failure> {
        texts.iter().flatten().map(|text| c_string(text)).collect()
    };
    let prepared = || {
        let path = c_string(&program.to_string_lossy())?;
        Ok((path, strings(process.args())?, strings(process.env())?))
    };
    let (path, arguments, environment) = match prepared() {
        Ok(prepared) => prepared,
        Err(failure) => return failure,
    };
    match execve(&path, &arguments, &environment) {
        Ok(never) => match never {},
        Err(Errno::ENOENT | Errno::ENOTDIR) => Failure {
            kind: FailureKind::ProgramNotFound,
            message: format!("{} or the interpreter it names does not exist", program.display()),
        },
        Err(error) => Failure {
            kind: FailureKind::ProgramNotExecutable,
            message: format!("executing {}: {}", program.display(), error.desc()),
        },
    }
}

/// The file the process's first argument names: itself when it has a slash in it, else the first
/// executable one of the directories in `PATH`.
fn find_program(process: &Process) -> Result<PathBuf, Failure> {
    let Some(name) = process.args().as_ref().and_then(|args| args.first()) else {
        return Err(no_process());
    };
    if name.is_empty() {
        return Err(refused(name, Errno::ENOENT));
    }
    if name.contains('/') {
        return executable(Path::new(name)).map_err(|errno| refused(name, errno));
    }
    let environment = process.env().as_deref().unwrap_or_default();
    let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let mut found_but = None;
    for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match executable(&Path::new(directory).join(name)) {
            Ok(program) => return Ok(program),
            Err(Errno::EACCES) => found_but = Some(Errno::EACCES),
            Err(_) => {}
        }
    }
    match found_but {
        Some(errno) => Err(refused(name, errno)),
        None => Err(Failure {
            kind: FailureKind::ProgramNotFound,
            message: format!("executable {name:?} not found in $PATH"),
        }),
    }
}

fn executable(path: &Path) -> Result<PathBuf, Errno> {
    access(path, AccessFlags::X_OK)?;
    if path.is_dir() {
        return Err(Errno::EACCES);
    }
    Ok(path.to_owned())
}

fn refused(name: &str, errno: Errno) -> Failure {
    let kind = match errno {
        Errno::EACCES | Errno::EPERM => FailureKind::ProgramNotExecutable,
        _ => FailureKind::ProgramNotFound,
    };
    Failure { kind, message: format!("executable {name:?}: {}", errno.desc()) }
}

fn no_process() -> Failure {
    Failure { kind: FailureKind::Other, message: "the process names no program".to_owned() }
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure {
        kind: FailureKind::Other,
        message: format!("{text:?} holds a zero byte"),
    })
}

/// The socket is borrowed: libcontainer's child must not close what its parent still uses.
fn report(socket: RawFd, failure: &Failure) {
    let Ok(copy) = nix::unistd::dup(crate::sys::borrowed(socket)) else { return };
    drop(ReplySocket::new(copy).failed(failure));
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::ProcessBuilder;
    use std::os::unix::fs::PermissionsExt;

    fn process(program: &str, path: &Path) -> Process {
        ProcessBuilder::default()
            .args(vec![program.to_owned()])
            .env(vec![format!("PATH=/nowhere:{}", path.display())])
            .build()
            .unwrap()
    }

    #[test]
    fn a_program_is_found_in_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(find_program(&process("tool", directory.path())), Ok(file));
    }

    #[test]
    fn missing_and_not_executable_programs_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("text"), "").unwrap();
        let kind =
            |program: &str| find_program(&process(program, directory.path())).unwrap_err().kind;
        assert_eq!(kind("missing"), FailureKind::ProgramNotFound);
        assert_eq!(kind("/nowhere/at/all"), FailureKind::ProgramNotFound);
        assert_eq!(kind("text"), FailureKind::ProgramNotExecutable);
        assert_eq!(kind("/tmp"), FailureKind::ProgramNotExecutable);
        assert_eq!(kind(""), FailureKind::ProgramNotFound);
    }
}
