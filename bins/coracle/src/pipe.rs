//! Nobody reads our output any more, as in `coracle ls | head -1`: that is no failure to tell of.

use std::io::ErrorKind;
use std::process::ExitCode;

/// As of a program that died of SIGPIPE.
const SIGPIPE: u8 = 128 + 13;

/// Ends the process when the standard library's own printing meets a reader that is gone, for which it
/// panics.
pub fn end_quietly() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        if said.is_some_and(|said| said.starts_with("failed printing to stdout: Broken pipe")) {
            std::process::exit(i32::from(SIGPIPE));
        }
        before(panic);
    }));
}

/// Whether that is all that went wrong.
pub fn is_broken(error: &anyhow::Error) -> bool {
    // Of a socket there would be more to say.
    error.chain().count() == 1
        && error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// How such a command ends.
pub fn broken() -> ExitCode {
    ExitCode::from(SIGPIPE)
}
