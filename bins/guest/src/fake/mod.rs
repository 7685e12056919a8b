//! A guest without a VM, for tests.

use std::process::ExitCode;

/// To be written.
pub fn main(_arguments: Vec<String>) -> ExitCode {
    ExitCode::FAILURE
}
