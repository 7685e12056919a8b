//! The user's terminal: raw while a container has it, itself again on every way out.

use std::io::{self, IsTerminal};
use std::sync::Mutex;

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was before we touched it. A panic hook and signal paths
/// need it as much as the guard does, hence one place for the process.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode for as long as this lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal on standard input into raw mode.
    ///
    /// # Errors
    /// Standard input is not a terminal, or the terminal refuses.
    pub fn enter() -> io::Result<RawMode> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut place) = BEFORE.lock() {
            *place = Some(before);
        }
        install_panic_hook();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was; harmless when nothing was changed.
pub fn restore() {
    let before = BEFORE.lock().ok().and_then(|mut place| place.take());
    if let Some(before) = before {
        // Nothing sensible is left to do when the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
    });
}

/// Width and height of the terminal on standard input, if it is one.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Is standard input a terminal?
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}
