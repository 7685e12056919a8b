//! How failures become result codes.
//!
//! Most have none of their own in the protocol. Two do here, beyond hcsshim's table, because people
//! know them by a shell's exit code: a program that is not there and one that cannot be executed.

use std::error::Error;
use std::io;

use coracle_bridge::hresult::Hresult;
use coracle_bridge::server::ServiceError;

use crate::container::launch::{self, LaunchError};
use crate::container::request::{Failure, FailureKind};

/// The error with all its causes in one line.
pub fn failed(error: &dyn Error) -> ServiceError {
    ServiceError::failed(chain(error))
}

/// The code of a helper's failure.
pub fn launch(error: &LaunchError) -> ServiceError {
    ServiceError::new(hresult(launch::kind(error)), chain(error))
}

/// The code of a container that was not laid out.
pub fn layout(error: &anyhow::Error) -> ServiceError {
    let failure = error.downcast_ref::<Failure>();
    let kind = failure.map_or(FailureKind::Other, |failure| failure.kind);
    ServiceError::new(hresult(kind), format!("{error:#}"))
}

fn hresult(kind: FailureKind) -> Hresult {
    match kind {
        FailureKind::ProgramNotFound => Hresult::FILE_NOT_FOUND,
        FailureKind::ProgramNotExecutable => Hresult::ACCESS_DENIED,
        FailureKind::UserNotFound => Hresult::INVALID_ARGUMENT,
        FailureKind::Other => Hresult::FAIL,
    }
}

/// The code of a program of the VM itself that did not start.
pub fn spawn(name: &str, error: &io::Error) -> ServiceError {
    let hresult = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Hresult::FILE_NOT_FOUND,
        io::ErrorKind::PermissionDenied => Hresult::ACCESS_DENIED,
        io::ErrorKind::InvalidInput => Hresult::INVALID_ARGUMENT,
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => Hresult::ACCESS_DENIED,
        _ => Hresult::FAIL,
    };
    ServiceError::new(hresult, format!("starting {name:?}: {error}"))
}

/// `outer: cause: cause of the cause`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
