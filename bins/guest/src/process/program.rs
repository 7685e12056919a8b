//! Starting programs: the agent's own helpers, and processes of the VM itself.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::reaper::{Child, Reaper};
use crate::sys::{self, Program};

/// Where programs of the VM itself are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The agent's own program file, held open: it has no name any more after the switch of root.
#[derive(Debug)]
pub struct OwnProgram {
    file: File,
}

impl OwnProgram {
    /// Opens it; needs `/proc`.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/exe")? })
    }

    /// Starts the agent's program with other arguments and the descriptors given as
    /// `(ours, its number)`, which must include 0, 1 and 2.
    pub fn spawn(
        &self,
        reaper: &Reaper,
        arguments: &[&str],
        descriptors: &[(BorrowedFd<'_>, RawFd)],
    ) -> io::Result<Child> {
        // Through the agent's own table: in the child's the number may mean something else.
        let file = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        let program = Program {
            file: c_string(&file)?,
            arguments: arguments.iter().map(|text| c_string(text)).collect::<io::Result<_>>()?,
            environment: vec![c_string(&format!("PATH={PATH}"))?],
            directory: None,
            descriptors: numbers(descriptors),
            terminal: None,
        };
        reaper.spawn(|| sys::spawn(&program))
    }
}

/// A process of the VM itself.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// What is set beside `PATH`, and over it.
    pub environment: BTreeMap<String, String>,
    /// Where it runs; the root when empty.
    pub directory: String,
}

/// What a process's streams are connected to.
#[derive(Debug)]
pub enum Attachment<'a> {
    /// Stdin, stdout, stderr.
    Descriptors([BorrowedFd<'a>; 3]),
    /// All three are this terminal, which controls the process's session.
    Terminal(&'a Path),
}

impl Command {
    /// Starts it.
    ///
    /// # Errors
    /// `NotFound` when there is no such program, `PermissionDenied` when it cannot be executed,
    /// `InvalidInput` when a text holds a zero byte.
    pub fn spawn(&self, reaper: &Reaper, attachment: &Attachment<'_>) -> io::Result<Child> {
        let name = self.arguments.first().ok_or_else(|| invalid("no program is named"))?;
        let path = self.environment.get("PATH").map_or(PATH, String::as_str);
        let file = find(name, path, &self.directory)?;
        let mut environment = vec![];
        if !self.environment.contains_key("PATH") {
            environment.push(c_string(&format!("PATH={PATH}"))?);
        }
        for (name, value) in &self.environment {
            environment.push(c_string(&format!("{name}={value}"))?);
        }
        let directory = if self.directory.is_empty() { "/" } else { &self.directory };
        let (descriptors, terminal) = match attachment {
            Attachment::Descriptors([stdin, stdout, stderr]) => {
                (numbers(&[(*stdin, 0), (*stdout, 1), (*stderr, 2)]), None)
            }
            Attachment::Terminal(path) => (vec![], Some(c_string(&path.to_string_lossy())?)),
        };
        let program = Program {
            file: c_string(&file.to_string_lossy())?,
            arguments: self
                .arguments
                .iter()
                .map(|text| c_string(text))
                .collect::<io::Result<_>>()?,
            environment,
            directory: Some(c_string(directory)?),
            descriptors,
            terminal,
        };
        reaper.spawn(|| sys::spawn(&program))
    }
}

/// As a shell looks: a name with a slash is a path from `directory`, another is searched for.
fn find(name: &str, path: &str, directory: &str) -> io::Result<PathBuf> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut result = Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("executable {name:?} not found in {path:?}"),
    ));
    for candidate in path.split(':').map(|part| Path::new(directory).join(part).join(name)) {
        match access(&candidate, AccessFlags::X_OK) {
            Ok(()) if candidate.is_file() => return Ok(candidate),
            Err(nix::errno::Errno::EACCES) => result = Err(nix::errno::Errno::EACCES.into()),
            Ok(()) | Err(_) => {}
        }
    }
    result
}

fn numbers(descriptors: &[(BorrowedFd<'_>, RawFd)]) -> Vec<(RawFd, RawFd)> {
    descriptors.iter().map(|(ours, its)| (ours.as_raw_fd(), *its)).collect()
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| invalid("a text holds a zero byte"))
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
