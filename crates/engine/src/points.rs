//! The points between which a monitor may die, for tests: before and after each write of the ledger, and
//! before each change of the VM and in its guest.
//!
//! A test names a file in the first monitor's environment; it has the monitor killed at the point whose
//! number it writes there, or what comes there refused (`fail NUMBER`). Without the variable a point
//! costs one branch.

use std::path::PathBuf;
use std::sync::OnceLock;

use coracle_uvm::effect::Effects;

use crate::error::Error;

const VARIABLE: &str = "CORACLE_TEST_POINTS";

fn script() -> Option<&'static PathBuf> {
    static SCRIPT: OnceLock<Option<PathBuf>> = OnceLock::new();
    SCRIPT.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_ref()
}

/// Counts the file's number down; at zero the process dies as by SIGKILL from outside, or what comes is
/// refused as by a disk.
pub(crate) fn pass() -> Result<(), Error> {
    let Some(path) = script() else { return Ok(()) };
    // Several tasks may come here at once, and each counts.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let (verb, number) = text.trim().rsplit_once(' ').unwrap_or(("die", text.trim()));
    let Ok(left) = number.parse::<u64>() else { return Ok(()) };
    if left > 0 {
        // Whoever counts must not read half of it.
        let next = path.with_extension("next");
        let _ = std::fs::write(&next, format!("{verb} {}", left - 1));
        let _ = std::fs::rename(&next, path);
        return Ok(());
    }
    let _ = std::fs::remove_file(path);
    if verb == "fail" {
        return Err(Error::Injected);
    }
    let ourselves = rustix::process::getpid();
    let _ = rustix::process::kill_process(ourselves, rustix::process::Signal::KILL);
    Ok(())
}

/// What has the VM's changes pass here, too.
pub(crate) fn effects() -> Effects {
    match script() {
        Some(_) => Effects::told_to(|_| pass().is_err()),
        None => Effects::default(),
    }
}
